"""The ids that a client sends with a request, to find it again."""

from typing import NamedTuple


class Caller(NamedTuple):
    """The ids of one request; both may be empty.

    request_id: the client's `x-request-id`. traceparent: as in W3C's header of that name.
    """

    request_id: str = ""
    traceparent: str = ""


NOBODY = Caller()
