"""First come, first served."""

from collections.abc import Iterator

from sps2.common.config import Scheduler
from sps2.services.scheduler.chunks import Chunks, each
from sps2.services.scheduler.decisions import Decision, Hold, LookUp
from sps2.services.scheduler.placing import Placing
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

OVERTAKINGS = 64
"""How many later requests may overtake one that waits for room; then they wait behind it."""
LOOKAHEAD = 32
"""How many requests may wait for room while later ones are still considered."""


class Fcfs:
    """Starts requests by priority, then in order of arrival, each on idle shards.

    Three kinds of requests let later ones pass. One that shares a prefix with a request being
    prefilled waits for the pages of that request. One that waits for absent shards waits alone. One
    that waits for room lets `OVERTAKINGS` pass; then all wait behind it.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self.placing = Placing(settings, schemes)
        self.chunks = Chunks(schemes, each(settings.chunk_tokens), settings.prefill_span_tokens)

    def precedes(self, view: View, other: Request, request: Request) -> bool:
        return other.plan is not None or other.submitted_s <= request.submitted_s

    def decide(self, view: View) -> Iterator[Decision]:
        for request in view.between_chunks():
            yield view.proceed(request, self)
        held = 0
        for request in view.waiting():
            decision = view.consider(request, self)
            yield decision
            match decision:
                case LookUp():
                    return
                case Hold(_, wait) if wait.cause == "shards":
                    return
                case Hold(_, wait) if wait.cause == "room":
                    held += 1
                    if held == LOOKAHEAD or request.overtaken >= OVERTAKINGS:
                        return
