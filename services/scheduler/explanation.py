"""Why a request ran where and when it did: a replay of the scheduler's recent decisions."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, get_args

import msgspec

from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import PrefillOptions, Scheme, Setting
from sps2.common.words import counted
from sps2.services.scheduler.actions import Preempt
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Assign, Decision, Hold, NextChunk, Refuse, Start, Urge
from sps2.services.scheduler.event_log import Entry
from sps2.services.scheduler.events import (
    Chunked,
    Decoded,
    Ended,
    Found,
    Grew,
    Lost,
    Prefilled,
    ReadingAhead,
    Returned,
    Starved,
    Submitted,
)
from sps2.services.scheduler.left_out import left_out
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.replay import Recording
from sps2.services.scheduler.schemes import EXACT
from sps2.services.scheduler.view import View

DEGREES = 6
"""Of this many SP degrees the costs are shown, beside the one that was chosen."""


class Option(NamedTuple):
    """A plan that was possible.

    seconds: predicted, from its launch to the first token. nbytes: between prefill shards.
    """

    sp_degree: int
    attention: str
    method: str
    cached_tokens: int
    seconds: float
    nbytes: int
    chosen: bool


class Step(NamedTuple):
    """Something that the scheduler decided or learned about a request.

    at_s: seconds after its arrival. options: among which it chose, the chosen one first and then
        the cheapest.
    """

    at_s: float
    what: str
    options: tuple[Option, ...] = ()


class Explanation(NamedTuple):
    """The life of a request as the scheduler saw it."""

    request: str
    steps: tuple[Step, ...]


def explain(recording: Recording, wanted: str) -> tuple[Explanation, ...]:
    """The life of every request whose id begins with `wanted`: an answer has one for each choice.

    Raises:
        Invalid: there is none, or the recording cannot be replayed.
    """
    if not wanted:
        raise Invalid("which request? `spsctl trace` lists the ids of answers", "request")
    core = recording.core()
    found: dict[str, _Account] = {}
    now_s = 0.0

    def observe(decision: Decision, view: View) -> None:
        if not isinstance(decision, Assign) and (account := found.get(decision.request)):
            account.decided(decision, view, core, now_s)

    core.observe = observe
    for entry in recording.replay(core):
        now_s = entry.at_s
        if isinstance(entry.event, Submitted) and entry.event.work.request.startswith(wanted):
            found[entry.event.work.request] = _Account(entry.event.work, entry.at_s, core)
        for account in found.values():
            account.happened(entry)
            account.gave_way(entry)
    if not found:
        raise Invalid(
            f"the scheduler remembers no request {wanted!r}: it may be older than the "
            f"{len(recording.entries)} events that are kept"
        )
    return tuple(Explanation(request, tuple(each.steps)) for request, each in found.items())


class _Account:
    """Collects the steps of one request."""

    def __init__(self, work: Work, at_s: float, core: Core) -> None:
        self._work = work
        self._since_s = at_s
        self._launched_s = at_s
        self._expected_s: float | None = None
        self.steps = [Step(0.0, _arrival(work, core))]
        self._held = ""
        self._gave_way = False
        self._shards: set[str] = set()
        """Of its plans since it was queued."""
        self._lost: list[str] = []
        """Those that were lost meanwhile."""

    def _add(self, at_s: float, what: str, options: tuple[Option, ...] = ()) -> None:
        self.steps.append(Step(at_s - self._since_s, what, options))

    def decided(self, decision: Decision, view: View, core: Core, now_s: float) -> None:
        match decision:
            case Hold(_, wait):
                if self._held != wait.in_words:
                    self._add(now_s, f"waits for {wait.in_words}")
                self._held = wait.in_words
            case Refuse(_, error):
                self._add(now_s, f"refused: {error}")
            case Urge(_, urgency):
                self._add(now_s, f"its urgency becomes {urgency:.1f}")
            case NextChunk(_, plan):
                self._held = ""
                self._shards |= plan.shards
                self._add(now_s, f"goes on with {_chunk(plan)} on {', '.join(plan.group)}")
            case Start(_, plan, urgency):
                options = tuple(_options(self._work, plan, view, core))
                self._launched_s, self._expected_s = now_s, options[0].seconds
                self._shards, self._lost = plan.shards, []
                self._add(now_s, _start(plan, urgency, view), options)

    def gave_way(self, entry: Entry) -> None:
        if Preempt(self._work.request) in entry.actions:
            self._gave_way = True
            self._add(entry.at_s, "gives its pages up to an answer that needs them")

    def happened(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, Lost) and event.shard in self._shards - {*self._lost}:
            self._lost.append(event.shard)
        if getattr(event, "request", None) != self._work.request:
            return
        match event:
            case Found(_, cached):
                pages = sum(run.pages for run in cached)
                on_disk = sum(run.pages for run in cached if run.on_disk)
                where = f", {on_disk} of them on disk" if on_disk else ""
                known = f"the directory knows {pages} cached pages of its prompt{where}"
                self._add(entry.at_s, known)
            case ReadingAhead(_, _, hashes):
                read = counted(sum(map(len, hashes.values())), "page")
                self._add(entry.at_s, f"reads {read} from disk while it waits")
            case Returned(_, rest_s):
                self._held = ""
                lost = " and ".join(self._lost) or "a link between shards, or its KV"
                why = f"it lost {lost}" if rest_s is None else "there was no room after all"
                why = "its pages went to others" if self._gave_way else why
                self._gave_way = False
                self._add(entry.at_s, f"back to the queue: {why}")
            case Starved(_, pages):
                need = "a page" if pages == 1 else f"{pages} pages"
                if self._held != need:
                    self._add(entry.at_s, f"needs {need} more for its answer, and none is free")
                self._held = need
            case Grew():
                self._held = ""
            case Chunked():
                self._add(entry.at_s, "the chunk is computed")
            case Prefilled():
                took_s = entry.at_s - self._launched_s
                expected = f", {self._expected_s:.3f} s expected" if self._expected_s else ""
                self._add(entry.at_s, f"first token after {took_s:.3f} s of prefill{expected}")
            case Decoded(_, tokens):
                self._add(entry.at_s, f"answered with {tokens} tokens")
            case Ended():
                self._add(entry.at_s, "ended")


def _arrival(work: Work, core: Core) -> str:
    others = [status.stage for status in core.requests(0.0)]
    waiting = others.count("queued")
    limits = f", priority {work.priority}" if work.priority else ""
    if work.max_ttft_s is not None:
        limits += f", max_ttft_ms {1000 * work.max_ttft_s:g}"
    return (
        f"arrived: {work.prompt_tokens} tokens of prompt, up to {work.max_tokens} of answer"
        f"{limits}; {waiting} waited, {len(others) - waiting} ran"
    )


def _start(plan: Plan, urgency: float, view: View) -> str:
    kept = ", ".join(
        f"{place.shard} ({sum(span.tokens for span in (*place.shared, place.span))})"
        for place in plan.placements
    )
    beside = [
        f"{id} ({view.prefilling[id].urgency:.1f})"
        for shard in plan.group
        for id in view.fleet.members[shard].prefilled
    ]
    also = f"; they also prefill {', '.join(dict.fromkeys(beside))}" if beside else ""
    threads = f" with {plan.threads} threads" if plan.threads > 1 else ""
    part = "" if plan.chunk.stop == plan.placements[-1].span.stop else f" with {_chunk(plan)}"
    slower = _left_out(plan, view)
    gbit = plan.partition.scheme.lossless
    packed = "" if gbit is None else "; what travels is packed losslessly"
    packed += f" where that is faster than {gbit:.2g} Gbit/s" if gbit else ""
    return (
        f"started{part} on {', '.join(plan.group)}{threads}, urgency {urgency:.1f}{also}; "
        f"tokens of KV: {kept}{slower}{packed}"
    )


def _left_out(plan: Plan, view: View) -> str:
    """Which shards that prefill nothing are not in a plan because they are slow, in words."""
    slow = [f"{shard} ({why})" for shard, why in left_out(plan.group, view.fleet).items()]
    return f"; left out: {', '.join(slow)}" if slow else ""


def _chunk(plan: Plan) -> str:
    return f"tokens {plan.chunk.start} to {plan.chunk.stop}"


def _options(work: Work, chosen: Plan, view: View, core: Core) -> Iterator[Option]:
    """The chosen plan, and what the planner would have made of other options."""
    shards = len(view.fleet.prefillers())
    degrees = {min(shards, 2**power) for power in range(DEGREES)} | {len(chosen.group)}
    asked = PrefillOptions(
        kv_transfer_dtype=work.options.kv_transfer_dtype, lossless=work.options.lossless
    )
    variants = [
        msgspec.structs.replace(asked, sp_degree=degree, method=method)
        for degree in degrees
        for method in (EXACT if degree > 1 else (None,))
    ] + [
        PrefillOptions(sp_degree=degree, attention=attention, kv_transfer_dtype=dtype)
        for degree in degrees - {1}
        for attention in get_args(Setting)
        for dtype in (asked.kv_transfer_dtype, "int8")
        if attention != "exact" or dtype == asked.kv_transfer_dtype
    ]
    cached = view.cached(work.request)
    plans = [chosen]
    for options in variants:
        for runs in (cached, ()):
            try:
                plan = core.policy.placing.plan(
                    replace(work, options=options), runs, view.fleet, lambda member: 0.0
                )
            except ServiceError:
                continue
            if isinstance(plan, Plan):
                plans.append(plan)
    found: dict[tuple[int, str, str, int], Option] = {}
    for plan in plans:
        option = _option(plan, core, plan is chosen)
        found.setdefault(option[:4], option)
    first, *others = found.values()
    yield first
    yield from sorted(others, key=lambda option: option.seconds)


def _method(scheme: Scheme) -> str:
    """The method, and for CSA whether its blocks were to be packed or entropy-coded."""
    if scheme.method != "csa" or scheme.selection is None:
        return scheme.method
    return f"csa, {'packed' if scheme.selection.steps is None else 'coded'}"


def _option(plan: Plan, core: Core, chosen: bool) -> Option:
    partition = plan.partition
    return Option(
        len(plan.group),
        partition.attention,
        _method(partition.scheme) if len(plan.group) > 1 else "",
        plan.prefix.tokens,
        core.costs.first_token_s(plan.predicted_s),
        sum(partition.predicted_bytes.values()),
        chosen,
    )
