"""One request as the scheduler's core knows it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sps2.common.messages import CachedRun, RequestStatus
from sps2.common.page_hashes import common_pages
from sps2.services.scheduler.decisions import (
    Decision,
    Hold,
    LookUp,
    NextChunk,
    Refuse,
    Start,
    Urge,
)
from sps2.services.scheduler.plan import Plan, Wait, Work

TRUSTING_LOSSES = 2
"""After this many losses a request no longer uses cached pages: it computes its whole prompt."""

SAME_LOSS_S = 1.0
"""Losses within this time count as one: each shard that reached a dead one reports it."""

Stage = Literal["queued", "reserving", "prefill", "transfer", "decode"]


@dataclass
class Request:
    """A request that was submitted and has not ended. Policies only read it."""

    work: Work
    submitted_s: float
    epoch: int = 0
    stage: Stage = "queued"
    plan: Plan | None = None
    urgency: float = 0.0
    """Of its prefill."""
    computed: int = 0
    """Tokens of the prompt computed so far."""
    awaits_chunk: bool = False
    """Whether a chunk of its prompt is computed, and the next one has not begun."""
    launched_s: float = 0.0
    launched_at: int = 0
    """The `Fleet.changes` at which it was launched."""
    since_s: float = 0.0
    """Since when it had waited when it was launched; see `turn_s`."""
    prefilled_s: float | None = None
    """When its first token came."""
    is_alone: bool = True
    """Whether its shards prefilled nothing else since it was launched."""
    cached: tuple[CachedRun, ...] | None = None
    """Cached pages of the prompt; None until the directory answers, or if more may be cached."""
    is_finding: bool = False
    """Whether a `Find` for it is under way."""
    is_shareable: bool = False
    losses: int = 0
    lost_s: float | None = None
    """When it last lost a shard."""
    wait: Wait | None = None
    """Why it waited when a policy last considered it."""
    held_at: int = -1
    """`Fleet.changes_for` at that time."""
    is_preempted: bool = False
    """Whether it is to give its pages up, and has not done so yet."""
    was_preempted: bool = False
    """Whether it gave its pages up before its first token."""
    has_grown: bool = False
    """Whether its answer has used up the room that was reserved at first."""
    overtaken: int = 0
    """How many later requests ran before it while it waited for room."""
    keeps_room_since: int | None = None
    """The `Fleet.changes` since which those that start leave it the room it needs; see `Hold`."""
    rests_until_s: float = 0.0
    absent_since_s: float | None = None
    """Since when it waits for absent shards."""

    @property
    def id(self) -> str:
        return self.work.request

    @property
    def open_to(self) -> tuple[type[Decision], ...]:
        """The decisions that may be made about it now."""
        if self.plan is None:
            return Start, LookUp, Hold, Refuse
        return (NextChunk, Hold, Urge) if self.awaits_chunk else (Urge,)

    @property
    def is_trusting(self) -> bool:
        return bool(self.work.hashes) and self.losses < TRUSTING_LOSSES

    @property
    def is_known(self) -> bool:
        """Whether it is known which of its pages are cached, or does not matter."""
        return self.cached is not None or not self.is_trusting

    @property
    def is_protected(self) -> bool:
        """Whether it was preempted, and has not used up the room that it got since."""
        return (self.was_preempted or self.work.resumes) and not self.has_grown

    @property
    def rank(self) -> tuple[int, bool, float]:
        """Sort key of requests that may have to give way; the last one does."""
        return -self.work.priority, not self.work.resumes, self.submitted_s

    def gains_from(self, other: "Request") -> bool:
        """Whether to wait for the other's pages: most of what that computes now is shared."""
        if other.plan is None or other.is_shareable or not self.is_trusting:
            return False
        prefix = other.plan.prefix
        wanted = (self.work.prompt_tokens - 1) // prefix.page_tokens
        shared = min(wanted, common_pages(self.work.hashes, other.work.hashes)) - prefix.pages
        return shared > 0 and 2 * shared >= len(other.work.hashes) - prefix.pages

    def wakes_at(self, patience_s: float) -> Iterator[float]:
        """Times at which something may become of it, while it is queued, by itself."""
        if self.rests_until_s:
            yield self.rests_until_s
        if self.work.max_ttft_s is not None:
            yield self.submitted_s + self.work.max_ttft_s
        if self.absent_since_s is not None:
            yield self.absent_since_s + patience_s

    def turn_s(self, turns: Mapping[str, float]) -> float:
        """Since when it has waited for others.

        If there are several callers, that is since its own caller's last request was launched: of
        many requests of one caller only the next one grows older.

        Args:
            turns: when the last request of each caller was launched.
        """
        if len(turns) < 2:
            return self.submitted_s
        return max(self.submitted_s, turns.get(self.work.caller, 0.0))

    def launch(self, plan: Plan, urgency: float, now_s: float, changes: int) -> None:
        """Begin to carry out a plan, at so many `Fleet.changes`."""
        self.plan, self.urgency, self.stage = plan, urgency, "reserving"
        self.wait = self.absent_since_s = None
        self.launched_s, self.launched_at = now_s, changes

    def keep_room(self, keeps: bool, changes: int) -> None:
        """See `Hold`; at so many `Fleet.changes`."""
        if not keeps or self.keeps_room_since is None:
            self.keeps_room_since = changes if keeps else None

    def uses(self, shard: str) -> bool:
        """Whether it has KV on a shard, or room for it."""
        return self.plan is not None and any(place.shard == shard for place in self.plan.placements)

    def needs(self, shard: str) -> bool:
        """Whether it cannot go on without a shard, which may still send KV that it computed."""
        computes = self.plan is not None and shard in self.plan.group and self.stage != "decode"
        return computes or self.uses(shard)

    def return_to_queue(self, now_s: float, rest_s: float | None) -> None:
        """Forget the plan; see `Returned`."""
        if rest_s is None:
            self.losses += self.lost_s is None or now_s - self.lost_s > SAME_LOSS_S
            self.lost_s = now_s
        self.rests_until_s = now_s + (rest_s or 0.0)
        self.epoch, self.stage, self.plan = self.epoch + 1, "queued", None
        self.cached, self.is_shareable = None, False
        self.was_preempted = self.was_preempted or self.is_preempted
        self.computed, self.prefilled_s, self.is_preempted = 0, None, False
        self.awaits_chunk, self.wait = False, None

    def status(self, now_s: float, held_back_by: str = "") -> RequestStatus:
        """See `RequestStatus`; `held_back_by` is a request that is computed first."""
        plan = self.plan
        waits_for = f"{held_back_by}, which is more urgent" if held_back_by else ""
        if self.wait is not None:
            waits_for = self.wait.in_words
        return RequestStatus(
            self.id,
            self.stage,
            self.work.prompt_tokens,
            now_s - self.submitted_s,
            self.epoch,
            len(plan.group) if plan else 0,
            plan.owner if plan else "",
            plan.placements if plan else (),
            plan.prefix.tokens if plan else 0,
            plan.group if plan else (),
            self.work.max_tokens,
            waits_for,
        )


def held_back_by(request: Request, beside: Iterable[Request]) -> str:
    """The most urgent request that is prefilled before another on its shards; empty if none."""
    others = [other for other in beside if other.stage == "prefill"]
    first = max(others, key=lambda other: other.urgency, default=request)
    is_held = request.stage == "prefill" and first.urgency > request.urgency
    return first.id if is_held else ""
