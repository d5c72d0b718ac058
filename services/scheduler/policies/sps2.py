"""The default policy: little work first, preempting longer prefills, so that no short prompt waits.

Source of the order: PREFLOW (vllm-ascend issue 16360), which minimises the mean slowdown.
"""

from math import log2

from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.view import View

AGE_S = 5.0
"""Waiting for so long doubles a request's priority."""
PRIORITY = 16
"""A step of priority counts like waiting so many times `AGE_S` longer."""


class Sps2(Preemptive):
    """Orders requests by 2^(age / `AGE_S`) / (work * work left), the largest first.

    Work is the predicted arithmetic of the prompt without its cached prefix. Ages grow alike, so
    that a request is overtaken only by those that come within `AGE_S` times log2 of the ratio of
    the priorities.
    """

    NOTICEABLE = 1.0  # its remaining work has halved

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        """log2 of the priority, without what grows alike for all: the time."""
        work_s, left_s = self.work_s(view, request)
        waited = (view.since_s(request) if since_s is None else since_s) / AGE_S
        return PRIORITY * request.work.priority - waited - log2(work_s) - log2(left_s)
