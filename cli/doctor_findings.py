"""The findings of `spsctl doctor`."""

from typing import Literal

import msgspec

Verdict = Literal["ok", "warning", "broken"]


class Finding(msgspec.Struct):
    """The outcome of one check; `broken` means that a cluster cannot be served."""

    check: str
    verdict: Verdict
    detail: str
