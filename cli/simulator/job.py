"""One launch of a request: does in virtual time what `services/scheduler/job.py` has shards do."""

from collections.abc import Callable
from typing import Protocol

from sps2.cli.simulator.clock import Timer
from sps2.cli.simulator.compute import Unit, Work
from sps2.cli.simulator.costs import Costs, RankCost
from sps2.cli.simulator.decoding import Sequence
from sps2.cli.simulator.links import Flow, Link
from sps2.cli.simulator.machines import Machines
from sps2.cli.simulator.outcomes import Activity, Delay, Outcome
from sps2.common.errors import Refused
from sps2.common.messages.prefill import PIECE_ROWS
from sps2.common.spans import pages_for
from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.cached_prefix import own_hashes, shared_hashes
from sps2.services.scheduler.events import (
    Chunked,
    Decoded,
    Event,
    Granted,
    Grew,
    Prefilled,
    Progressed,
    Shareable,
    Starved,
)
from sps2.services.scheduler.growth import AGAIN_S, LONGEST_AGAIN_S
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.plan import Work as Request

REPORTS = 16
"""About how often a prefill reports its progress, but not more often than `REPORT_S`."""
REPORT_S = 0.25


class Owner(Protocol):
    """The simulation that a job belongs to."""

    machines: Machines
    directory: Directory
    costs: Costs
    growth_tokens: int
    pass_tokens: int
    activities: list[Activity]

    def handle(self, event: Event) -> None:
        """Pass an event to the scheduler's core."""
        ...

    def refused(self, job: "Job") -> None:
        """The directory had no room after all."""
        ...

    def finished(self, job: "Job") -> None:
        """The answer is complete."""
        ...


class Job:
    """Runs one plan of one request, from its lease to its last token.

    Args:
        tokens: of the answer.
        outcome: filled in as the job runs.
    """

    def __init__(
        self,
        owner: Owner,
        request: Request,
        epoch: int,
        plan: Plan,
        urgency: float,
        tokens: int,
        outcome: Outcome,
    ) -> None:
        self.request = request
        self.epoch = epoch
        self.plan = plan
        self.tokens = tokens
        self.outcome = outcome
        self.is_answering = False
        """Whether its first token has come."""
        self._owner = owner
        self._machines = owner.machines
        self._clock = owner.machines.clock
        self._urgency = urgency
        self._works: list[tuple[Unit, Work]] = []
        self._flows: list[tuple[Link, Flow]] = []
        self._timers: list[Timer] = []
        self._missing = 0
        """Ranks and exchanges of the chunk that have not ended."""
        self._depositing = 0
        """Flows of KV that have not arrived."""
        self._after_deposit: Callable[[], None] | None = None
        self._sequence: Sequence | None = None
        self._pages = plan.placements[-1].pages
        self._is_leased = False

    def start(self) -> None:
        """Take the lease and begin; reports `Granted`, or that it was refused."""
        plan, hashes = self.plan, self.request.hashes
        shared = shared_hashes(plan.placements, hashes, plan.prefix.page_tokens)
        directory = self._owner.directory
        try:
            directory.reserve(self.request.request, self.epoch, plan.placements, shared)
        except Refused:
            self._owner.refused(self)
            return
        self._is_leased = True
        outcome = self.outcome
        outcome.degree, outcome.group = len(plan.group), plan.group
        outcome.owner, outcome.cached_tokens = plan.owner, plan.prefix.tokens
        self._owner.handle(Granted(self.request.request, directory.room()))
        host = self._machines.units[plan.group[0]].host
        self._after(self._machines.profile.launch_s * host.slowdown, self._compute)

    def proceed(self, plan: Plan, urgency: float) -> None:
        """Compute the next chunk as planned."""
        self.plan, self._urgency = plan, urgency
        self._compute()

    def urge(self, urgency: float) -> None:
        """Its prefill has another urgency from now on."""
        self._urgency = urgency
        for unit, work in self._works:
            unit.host.advance()
            work.urgency = urgency
            unit.host.schedule()

    def stop(self) -> None:
        """End it: it computes nothing more, and its lease ends."""
        for timer in self._timers:
            timer.cancel()
        for unit, work in self._works:
            unit.host.drop(unit, work)
            self._note(unit, work)
        for link, flow in self._flows:
            link.drop(flow)
        if self._sequence is not None:
            self._machines.stop(self.plan.owner, self._sequence)
        self._works, self._flows = [], []
        if self._is_leased:
            self._owner.directory.release(self.request.request, self.epoch)
            self._is_leased = False

    @property
    def decoded(self) -> int:
        """Tokens of the answer so far, once it has been stopped."""
        if self._sequence is None:
            return int(self.is_answering)
        return max(1, min(self.tokens - 1, self.tokens - round(self._sequence.left)))

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.at_s > self._clock.now_s]
        self._timers.append(self._clock.call_at(self._clock.now_s + seconds, call))

    def _compute(self) -> None:
        plan, profile = self.plan, self._machines.profile
        ranks = self._owner.costs.ranks(plan)
        is_alone = len(ranks) == 1
        self._works, self._flows = [], []
        behind = self._owner.costs.behind(plan)
        asked = {shard: pairs for shard, pairs in behind.items() if shard not in plan.group}
        self._missing = len(ranks) + len(asked) + sum(rank.exchanged > 0 for rank in ranks)
        self._depositing = sum(bool(rank.deposited) for rank in ranks)
        sent = self.outcome.sent_bytes
        for kind, nbytes in plan.partition.predicted_bytes.items():
            sent[kind] = sent.get(kind, 0.0) + nbytes
        longest_s = 0.0
        for shard, rank in zip(plan.group, ranks, strict=True):
            unit, link = self._machines.units[shard], self._machines.links[shard]
            seconds = self._in_passes(unit, rank) + profile.share_s * (not is_alone)
            seconds += profile.waits_behind_s * bool(asked)
            seconds *= profile.busy_prefill if unit.host.slowdown > 1 else 1.0
            threads = float(max(1, plan.threads)) if is_alone else 1.0
            shared = rank.rows if self._is_short(rank) else 0
            speed = 1 + profile.lent_gain * (threads - 1)
            work = Work(
                seconds,
                self._urgency,
                self._part,
                threads,
                speed,
                plan.shares_steps,
                shared,
                is_alone and not asked and rank.rows <= PIECE_ROWS,
            )
            self._works.append((unit, work))
            longest_s = max(longest_s, seconds / speed)
            if rank.exchanged:
                self._flows.append((link, link.send(rank.exchanged, self._part)))
            if rank.deposited:
                nbytes = sum(rank.deposited.values())
                sent["deposit"] = sent.get("deposit", 0.0) + nbytes
                self._flows.append((link, link.send(nbytes, self._deposited)))
        for shard, pairs in asked.items():
            work = Work(profile.behind_s(pairs), self._urgency, self._part)
            self._works.append((self._machines.units[shard], work))
        for unit, work in self._works:
            unit.host.add(unit, work)
        self._report_every(max(REPORT_S, longest_s / REPORTS), longest_s)

    def _is_short(self, rank: RankCost) -> bool:
        """Whether its passes have rows of other prompts too: of short ones, and of chunks whose
        passes take decode steps along."""
        if len(self.plan.group) > 1:
            return False
        return self.plan.shares_steps or 8 * rank.rows <= self._owner.pass_tokens

    def _in_passes(self, unit: Unit, rank: RankCost) -> float:
        """Seconds that one rank adds to passes of its shard: with others in them it adds less.

        A pass that takes decode steps along first waits for half a step on average.
        """
        beside = sum(work.shared_rows for work in unit.works) if self._is_short(rank) else 0
        if self.plan.shares_steps:
            waits_s = 0.0 if unit.sharing else unit.batch.step_s / 2
            alone_s = unit.batch.step_with(beside, 0.0) if beside else 0.0
            return waits_s + unit.batch.step_with(beside + rank.rows, rank.pairs) - alone_s
        profile = self._machines.profile
        alone_s = profile.prefill_s(beside, 0.0) if beside else 0.0
        return profile.prefill_s(beside + rank.rows, rank.pairs) - alone_s

    def _report_every(self, pause_s: float, expected_s: float) -> None:
        if expected_s > pause_s:
            self._after(pause_s, lambda: self._report(pause_s))

    def _report(self, pause_s: float) -> None:
        if not self._missing:
            return
        for unit, _ in self._works:
            unit.host.advance()
        done = sum(work.done for _, work in self._works) / len(self._works)
        chunk = self.plan.chunk
        before = chunk.start - self.plan.prefix.tokens
        computed = before + min(chunk.tokens - 1, round(done * chunk.tokens))
        self._owner.handle(Progressed(self.request.request, computed))
        self._after(pause_s, lambda: self._report(pause_s))

    def _part(self) -> None:
        """A rank or an exchange of the chunk has ended."""
        self._missing -= 1
        if self._missing:
            return
        for unit, work in self._works:
            self._note(unit, work)
        self._works = []
        if self.plan.chunk.stop < self.request.prompt_tokens:
            self._once_deposited(self._chunked)
            return
        self.is_answering = True
        if self.outcome.first_s is None:
            self.outcome.first_s = self._clock.now_s
        self._owner.handle(Prefilled(self.request.request))
        self._once_deposited(self._decode)

    def _note(self, unit: Unit, work: Work) -> None:
        """Record what a rank did, and when others held it back."""
        start_s, stop_s = work.started_s, work.stopped_s
        name = self.outcome.request
        self._owner.activities.append(Activity(unit.shard, "prefill", start_s, stop_s, name))
        if unit is self._works[0][0]:
            self.outcome.delays += [Delay("held back", *times) for times in work.held]

    def _deposited(self) -> None:
        self._depositing -= 1
        if not self._depositing and (call := self._after_deposit):
            self._after_deposit = None
            call()

    def _once_deposited(self, call: Callable[[], None]) -> None:
        if self._depositing:
            self._after_deposit = call
        else:
            call()

    def _commit(self) -> None:
        plan = self.plan
        hashes = self.request.hashes[: plan.chunk.stop // plan.prefix.page_tokens]
        own = own_hashes(plan.placements, hashes, plan.prefix.page_tokens)
        self._owner.directory.commit(self.request.request, self.epoch, own)

    def _chunked(self) -> None:
        if self.request.hashes:
            self._commit()
        self._owner.handle(Chunked(self.request.request))

    def _decode(self) -> None:
        if self.request.hashes:
            self._commit()
        self._owner.handle(Shareable(self.request.request))
        if self.tokens < 2:
            self._finish()
            return
        plan = self.plan
        held = {
            shard: sum(span.tokens for span in spans)
            for shard, spans in plan.before(self.request.prompt_tokens).items()
        }
        held.setdefault(plan.owner, 0)
        place = plan.placements[-1]
        room = place.pages * plan.prefix.page_tokens - place.span.tokens
        self._sequence = Sequence(held, self.tokens - 1, max(1, room), self._finish, self._grow)
        self._machines.decode(plan.owner, self._sequence)

    def _grow(self, pause_s: float = AGAIN_S) -> None:
        """Get more pages for the answer; waits until there are some."""
        plan, directory = self.plan, self._owner.directory
        page_tokens, place = plan.prefix.page_tokens, plan.placements[-1]
        most = pages_for(place.span.tokens + self.request.max_tokens, page_tokens)
        step = pages_for(self._owner.growth_tokens or self.request.max_tokens, page_tokens)
        for pages in {max(1, min(step, most - self._pages)): None, 1: None}:
            try:
                directory.extend(self.request.request, self.epoch, place.shard, pages)
            except Refused:
                continue
            self._pages += pages
            self._owner.handle(Grew(self.request.request, directory.room()))
            assert self._sequence is not None
            self._sequence.room += pages * page_tokens
            self._machines.decode(plan.owner, self._sequence)
            return
        again_s = min(2 * pause_s, LONGEST_AGAIN_S)
        self._after(pause_s, lambda: self._grow(again_s))
        self._owner.handle(Starved(self.request.request, 1))

    def _finish(self) -> None:
        if self._sequence is not None:
            self._machines.left(self.plan.owner, self._sequence)
        self._count_decoding()
        self._sequence = None
        self._owner.handle(Decoded(self.request.request, self.tokens))
        self._owner.finished(self)

    def _count_decoding(self) -> None:
        """Queries and states that went between the owner and other holders."""
        sequence, costs, sent = self._sequence, self._owner.costs, self.outcome.sent_bytes
        if sequence is None or (others := len(sequence.held) - 1) < 1:
            return
        tokens = (self.tokens - 1) * others
        sent["decode_q"] = sent.get("decode_q", 0.0) + tokens * costs.q_bytes
        sent["decode_state"] = sent.get("decode_state", 0.0) + tokens * costs.state_bytes
