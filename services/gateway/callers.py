"""Who asks: what a client gives with a request to find it again."""

from typing import NamedTuple


class Caller(NamedTuple):
    """Both may be empty.

    request_id: its own `x-request-id`. traceparent: as W3C's header of that name.
    """

    request_id: str = ""
    traceparent: str = ""


NOBODY = Caller()
