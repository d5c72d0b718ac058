"""PecSched: short prompts preempt long ones, which keep what they have; each kind in its order.

Source: PecSched (arXiv 2409.15104v2), its rules for prefills.
"""

from sps2.common.config import Scheduler
from sps2.services.scheduler.policies.preemptive import Preemptive
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

SHORT = 1e9
"""What a short prompt is more urgent than a long one; more than any time in seconds."""
GUARD = 5.0
PRIORITY_S = 80.0
"""A step of priority counts like having come so much earlier."""


class PecSched(Preemptive):
    """A prompt is short if one shard prefills it (`prefill_span_tokens`).

    Short ones start in order of arrival, on idle shards or on those that prefill a long one, which
    is held back. A long one starts once no shard that it needs prefills anything. The paper has no
    guard against endless preemption; here a long one comes before all that came later once it has
    taken `GUARD` times as long as it takes alone.
    """

    OVERTAKES = False
    NOTICEABLE = 1.0

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(settings, schemes)
        self._most_tokens = settings.prefill_span_tokens

    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        waited = view.since_s(request) if since_s is None else since_s
        first = self._is_short(request)
        if not first:
            work_s, _ = self.work_s(view, request)
            first = view.now_s - waited > GUARD * view.costs.first_token_s(work_s)
        return SHORT * first + PRIORITY_S * request.work.priority - waited

    def may_share(self, request: Request, left_s: float, other: Request, others_s: float) -> bool:
        return self._is_short(request) and not self._is_short(other)

    def _is_short(self, request: Request) -> bool:
        return request.work.resumes or request.work.prompt_tokens <= self._most_tokens
