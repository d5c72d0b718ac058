"""Length-aware relative slack: whoever has the least time left, relative to its length, goes first.

Source: Medha (arXiv 2409.17264v5).
"""

from collections.abc import Iterable

from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.view import View

STRETCH = 1.5
"""A first token's deadline is this many times what the prefill takes alone, after its arrival."""
LEAST_S = 0.5
"""The deadline is at least so far away."""
PRIORITY = 0.5
"""A step of priority counts like this much less relative slack."""


class Lars(Preemptive):
    """Orders requests by their relative slack, the smallest first.

    That is (deadline - now - time still needed) / (deadline - arrival). Prompts of all lengths then
    miss their deadlines by about the same factor, if any do: long ones do not starve, and short
    ones wait a little longer than with `sps2`.
    """

    NOTICEABLE = 0.05

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        work_s, left_s = map(view.costs.first_token_s, self.work_s(view, request))
        allowed_s = max(STRETCH * work_s, LEAST_S)
        arrived_s = view.since_s(request) if since_s is None else since_s
        slack_s = arrived_s + allowed_s - view.now_s - left_s
        return PRIORITY * request.work.priority - slack_s / allowed_s

    def changed(self, view: View) -> Iterable[Request]:
        return view.prefilling.values()
