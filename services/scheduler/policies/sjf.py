"""Shortest job first, by the predicted time of prompt and answer; no prompt preempts another.

Source of the order: shortest job first with predicted lengths, as in "Efficient LLM Scheduling by
Learning to Rank" (arXiv 2408.15792).
"""

from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.view import View

AGEING = 0.5
"""A second of waiting counts like this many seconds less work, so that nobody starves."""
PRIORITY_S = 8.0
"""A step of priority counts like this many seconds less work."""


class Sjf(Preemptive):
    """Starts the request that is predicted to take the least time.

    The answer's length is predicted by the mean of its caller's recent answers (`Costs`).
    """

    OVERTAKES = False
    NOTICEABLE = float("inf")

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        work_s, _ = self.work_s(view, request)
        tokens = view.costs.answer_tokens(request.work.caller, request.work.max_tokens)
        takes_s = view.costs.first_token_s(work_s) + tokens * (view.costs.tbt_s or 0.0)
        waited = view.since_s(request) if since_s is None else since_s
        return PRIORITY_S * request.work.priority - takes_s - AGEING * waited

    def may_share(self, request: Request, left_s: float, other: Request, others_s: float) -> bool:
        return False
