"""What a policy may read: the queue, what runs, the shards and the clock."""

from collections.abc import Mapping, Sequence

from sps2.common.errors import ServiceError
from sps2.services.scheduler.cached_prefix import usable
from sps2.services.scheduler.decisions import Hold, LookUp, Refuse, Start
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.placing import Ahead, Placing, idle
from sps2.services.scheduler.plan import Wait
from sps2.services.scheduler.request import Request

Considered = Start | LookUp | Hold | Refuse


class View:
    """The state of the core while a policy decides; only for reading.

    It is live: after each decision that the policy yields, it shows what follows from it.
    """

    def __init__(
        self, requests: Mapping[str, Request], queue: Sequence[str], fleet: Fleet, now_s: float
    ) -> None:
        self._requests = requests
        self._queue = queue
        self.fleet = fleet
        self.now_s = now_s
        self.considered: str | None = None
        """The request that was considered last."""

    def waiting(self) -> list[Request]:
        """Queued requests that do not rest, those that resume an answer first."""
        queued = [self._requests[request] for request in self._queue]
        return [request for request in queued if request.rests_until_s <= self.now_s]

    def prefilling(self) -> list[Request]:
        """Requests whose prompt is computed, or about to be."""
        return [each for each in self._requests.values() if each.stage in ("reserving", "prefill")]

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a prompt that are not computed, as far as is known."""
        if request.plan is not None:
            return request.plan.prefix.tokens
        return usable(request.cached or (), request.work.prompt_tokens, self.fleet).tokens

    def consider(self, request: Request, placing: Placing, ahead: Ahead = idle) -> Considered:
        """Start a request where `placing` finds shards for it, or why it cannot start now."""
        self.considered = request.id
        if any(request.gains_from(other) for other in self._requests.values()):
            return Hold(request.id, Wait("prefix"))
        try:
            plan = placing.plan(request.work, request.cached or (), self.fleet, ahead)
        except ServiceError as error:
            return Refuse(request.id, error)
        if isinstance(plan, Wait) and plan.cause == "absent":
            return Hold(request.id, plan)
        if not request.is_known:
            return LookUp(request.id)
        return Hold(request.id, plan) if isinstance(plan, Wait) else Start(request.id, plan)
