"""PREFLOW: whoever has the smallest product of work and of work left goes first.

Source: vllm-ascend issue 16360. `sps2` is this with predicted seconds in place of pairs of tokens.
"""

from math import log2

from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.policies.sps2 import AGE_S, PRIORITY
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.view import View


class Preflow(Preemptive):
    """Orders requests by 2^(age / `AGE_S`) / (P * R), the largest first.

    P counts the pairs of a query and a key that the prompt takes without its cached prefix, R those
    left of it.
    """

    NOTICEABLE = 1.0

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        """log2 of the priority, without what is the same for all: the time."""
        tokens, cached = request.work.prompt_tokens, view.cached_tokens(request)
        if request.work.resumes:
            tokens, cached = 1, 0
        whole = _pairs(tokens) - _pairs(cached)
        left = _pairs(tokens) - _pairs(min(tokens - 1, cached + request.computed))
        waited = (view.since_s(request) if since_s is None else since_s) / AGE_S
        return PRIORITY * request.work.priority - waited - log2(whole) - log2(left)


def _pairs(tokens: int) -> float:
    return tokens * (tokens + 1) / 2
