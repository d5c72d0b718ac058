"""The default policy: little work first, preempting longer prefills, so that no short prompt waits.

Source of the order: PREFLOW (vllm-ascend issue 16360), which minimises the mean slowdown.
"""

from math import log2

from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.view import View

AGE_S = 5.0
"""Waiting this long doubles a request's priority."""
PRIORITY = 16
"""A step of priority counts like waiting this many times `AGE_S` longer."""


class Sps2(Preemptive):
    """Orders requests by 2^(age / `AGE_S`) / (work * work left), the largest first.

    Work is the predicted arithmetic of the prompt without its cached prefix. All requests age at
    the same rate, so that only those overtake a request that come within `AGE_S` times log2 of the
    ratio of the priorities after it.
    """

    NOTICEABLE = 1.0  # its remaining work has halved

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        """log2 of the priority, without the current time, which is the same for all."""
        work_s, left_s = self.work_s(view, request)
        waited = (view.since_s(request) if since_s is None else since_s) / AGE_S
        return PRIORITY * request.work.priority - waited - log2(work_s) - log2(left_s)
