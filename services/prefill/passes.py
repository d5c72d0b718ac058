"""Batches prompts that a shard prefills: they share passes through its layers, not attention."""

import asyncio
import itertools
import math
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from sps2.common.errors import Cancelled
from sps2.common.messages.prefill import PIECE_ROWS
from sps2.common.model.attend import Attend, inline
from sps2.common.model.llama import Llama
from sps2.services.prefill.compute_queue import Compute
from sps2.services.prefill.threads import with_threads
from sps2.services.prefill.timeline import Timeline

Result = TypeVar("Result")

Step = tuple[int, Tensor, Tensor, Tensor]
"""Layer, q, k, v."""


AttendHere = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""The attention of a layer (layer, q, k, v), computed on the calling thread."""

FEW_ROWS = 256
"""Largest batch of several prompts, in rows; up to here a linear layer of a GPU costs about as much
as for one row. On a CPU its cost grows from tens of rows on, so that prompts do not wait for such a
pass unless it is a single piece."""


class Passes:
    """The forward passes of a process, on its data loop.

    The prompts that arrive while a pass runs form the next one, up to `FEW_ROWS` rows or one longer
    prompt, the most urgent first. A linear layer takes hardly longer for a hundred rows than for
    ten, since most of its time goes into reading weights. A prompt that is more urgent than a long
    pass does not wait for its end. A prompt that fails or is cancelled does not affect the others:
    its rows go on with zeros for attention.

    A prompt may share its passes with the decode steps of the process, as in Sarathi-Serve (arXiv
    2403.02310, section 4.2): then the rows of the next step are in the next pass.

    A rank of a prompt that several shards share has a pass of its own. It waits for no other pass,
    also not for a step in one: other shards wait for it, and their passes may be waited for here.

    Args:
        decoding: whether a decode step is under way or follows; `look` is called when that ends.
    """

    def __init__(
        self, model: Llama, compute: Compute, decoding: Callable[[], bool] = lambda: False
    ) -> None:
        self._model = model
        self._compute = compute
        self._decoding = decoding
        self._waiting: list[_Member] = []
        self._running: list[list[_Member]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        timeline: Timeline,
        wanted: Tensor,
        urgency: Callable[[], float] = lambda: 0.0,
        threads: int = 0,
        attend_here: AttendHere | None = None,
        shares_steps: bool = False,
        is_rank: bool = False,
    ) -> Tensor:
        """Run a prompt in the next pass; see `Llama.forward`.

        Args:
            timeline: of the prompt; the arithmetic of its pass counts as its own.
            wanted: rows whose hidden states are returned.
            urgency: of the prompt; see `Compute.prefill`.
            threads: that it may use if no other prompt is in its pass; see `with_threads`.
            attend_here: does what `attend` does without waiting for anything, on the compute
                thread; None if that is impossible.
            shares_steps: whether its passes take the rows of decode steps along.
            is_rank: whether other shards compute parts of the prompt.
        """
        member = _Member(ids, positions, timeline, wanted, urgency, threads, attend_here)
        member.shares_steps, member.is_rank = shares_steps, is_rank
        return await self._through(member, attend)

    @property
    def takes_steps(self) -> bool:
        """Whether decode steps are to run in passes now, by `step`."""
        return any(map(_shares_steps, [self._waiting, *self._running]))

    async def step(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run a decode step in the next pass; see `Llama.step`."""
        timeline, every = Timeline(), torch.arange(len(ids), device=ids.device)
        member = _Member(ids, positions, timeline, every, lambda: math.inf, 0, None)
        member.is_step = True
        return await self._through(member, attend)

    async def _through(self, member: "_Member", attend: Attend) -> Tensor:
        self._waiting.append(member)
        asyncio.get_running_loop().call_soon(self.look)
        return await member.through(attend)

    def urgency(self, own: Callable[[], float]) -> float:
        """How urgent a prompt is, given its own urgency as passed to `forward`.

        While it runs in a pass of few rows, it inherits the urgency of the most urgent waiting
        prompt. A rank does not: its urgency is the same on all shards.
        """
        for members in self._running:
            if _rows(members) <= PIECE_ROWS and any(each.urgency is own for each in members):
                if any(each.is_rank for each in members):
                    break
                return max(own(), _urgency(self._waiting))
        return own()

    def look(self) -> None:
        """Begin the next pass if it need not wait. Call it when an urgency has changed."""
        self._waiting = [member for member in self._waiting if not member.is_gone]
        self._waiting.sort(key=lambda member: -member.urgency())
        while (first := self._next()) is not None:
            members = [first]
            for other in [each for each in self._waiting if each is not first]:
                if self._joins(members, other):
                    members.append(other)
                elif not first.is_rank:
                    break
            self._waiting = [each for each in self._waiting if each not in members]
            self._running.append(members)
            task = asyncio.get_running_loop().create_task(self._pass(members))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> "_Member | None":
        """Who begins a pass now: ranks at once, others in the order of their urgency."""
        ordered = True
        for member in self._waiting:
            if (member.is_rank or ordered) and not self._waits(member):
                return member
            ordered &= member.is_step
        return None

    def _waits(self, first: "_Member") -> bool:
        """Whether the next pass has to wait: for a pass that runs, or for the next decode step."""
        if first.shares_steps and not first.is_step and self._steps_alone():
            return True
        return not first.is_rank and not all(
            _rows(running) > PIECE_ROWS
            and _urgency(running) < first.urgency()
            and not (first.is_step and _shares_steps(running))
            for running in self._running
        )

    def _steps_alone(self) -> bool:
        """Whether a decode step is under way that is in no pass, and does not wait for one."""
        known = [*self._waiting, *itertools.chain(*self._running)]
        return self._decoding() and not any(member.is_step for member in known)

    def _joins(self, members: list["_Member"], other: "_Member") -> bool:
        """Whether another prompt is in the same pass; a decode step takes one that shares steps."""
        first = members[0]
        if len(members) == 1 and first.is_step != other.is_step:
            prompt = other if first.is_step else first
            if prompt.shares_steps:
                return True
        if other.is_rank or any(each.is_rank for each in members):
            return False
        return _rows([*members, other]) <= FEW_ROWS

    async def _pass(self, members: list["_Member"]) -> None:
        sizes = [len(member.ids) for member in members]
        whole = _Whole(members, sizes)
        firsts = itertools.accumulate(sizes[:-1], initial=0)
        try:
            has_prompts = not all(member.is_step for member in members)
            urgency = (lambda: self._urgency_of(members)) if has_prompts else None
            with self._compute.prefill(urgency) as run:
                wider = with_threads(run, members[0].threads if len(members) == 1 else 0)

                async def compute(work: Callable[[], Result]) -> Result:
                    return await wider(lambda: whole.timed(work))

                ids = torch.cat([member.ids for member in members])
                forward = partial(
                    self._model.forward,
                    ids,
                    torch.cat([member.positions for member in members]),
                    selected=torch.cat(
                        [
                            first + member.wanted
                            for first, member in zip(firsts, members, strict=True)
                        ]
                    ),
                )
                here = [member.attend_here for member in members if member.attend_here]
                if len(here) == len(members) and len(ids) <= PIECE_ROWS:
                    attend = _Here(here, sizes)
                    hidden = await compute(lambda: _finished(forward(attend=attend, run=inline)))
                else:
                    hidden = await forward(attend=whole, run=compute)
        except Exception as error:
            for member in members:
                member.end(error)
        else:
            rows = [len(member.wanted) for member in members]
            for member, result in zip(members, hidden.split(rows), strict=True):
                member.end(result)
        finally:
            self._running.remove(members)
            self.look()

    def _urgency_of(self, members: list["_Member"]) -> float:
        here = [each for each in members if not each.is_gone and not each.is_step]
        return max((self.urgency(each.urgency) for each in here), default=-math.inf)


def _rows(members: list["_Member"]) -> int:
    return sum(len(member.ids) for member in members)


def _shares_steps(members: list["_Member"]) -> bool:
    return any(member.shares_steps and not member.is_gone for member in members)


def _urgency(members: list["_Member"]) -> float:
    here = [member for member in members if not member.is_gone and not member.is_step]
    return max((member.urgency() for member in here), default=-math.inf)


class _Whole:
    """The `Attend` of a pass: each member attends for its own rows."""

    def __init__(self, members: list["_Member"], sizes: list[int]) -> None:
        self._members = members
        self._sizes = sizes

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if all(member.is_gone for member in self._members):
            raise Cancelled("all prompts of this pass were ended")
        parts = zip(*(x.split(self._sizes) for x in (q, k, v)), strict=True)
        for member, part in zip(self._members, parts, strict=True):
            member.give((layer, *part))
        outs = [await member.attended.get() for member in self._members]
        if len(outs) == 1 and outs[0] is not None:
            return outs[0]
        joined = torch.zeros_like(q)
        for to, out in zip(joined.split(self._sizes), outs, strict=True):
            if out is not None:
                to.copy_(out)
        return joined

    def timed(self, work: Callable[[], Result]) -> Result:
        with ExitStack() as stack:
            for member in self._members:
                stack.enter_context(member.timeline.during("compute", -1))
            return work()


class _Here:
    """The `Attend` of a pass whose members attend on its thread."""

    def __init__(self, members: list[AttendHere], sizes: list[int]) -> None:
        self._members = members
        self._sizes = sizes

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(self._sizes) for x in (q, k, v)), strict=True)
        outs = [attend(layer, *part) for attend, part in zip(self._members, parts, strict=True)]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _finished(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise RuntimeError("a pass on one thread waited for something")


class _Member:
    """One prompt in a pass; its attention runs in its own task."""

    def __init__(
        self,
        ids: Tensor,
        positions: Tensor,
        timeline: Timeline,
        wanted: Tensor,
        urgency: Callable[[], float],
        threads: int,
        attend_here: AttendHere | None,
    ) -> None:
        self.ids = ids
        self.positions = positions
        self.timeline = timeline
        self.wanted = wanted
        self.urgency = urgency
        self.threads = threads
        self.attend_here = attend_here
        self.is_gone = False
        self.is_step = self.shares_steps = self.is_rank = False
        self.attended: asyncio.Queue[Tensor | None] = asyncio.Queue()
        """The attention of each layer; None once the member has left."""
        self._steps: asyncio.Queue[Step | Tensor | Exception] = asyncio.Queue()

    async def through(self, attend: Attend) -> Tensor:
        """Attend in every layer; returns the hidden states after the last."""
        try:
            while True:
                match await self._steps.get():
                    case Tensor() as hidden:
                        return hidden
                    case Exception() as error:
                        raise error
                    case step:
                        self.attended.put_nowait(await attend(*step))
        finally:
            self.is_gone = True
            self.attended.put_nowait(None)

    def give(self, step: Step) -> None:
        if self.is_gone:
            self.attended.put_nowait(None)
        else:
            self._steps.put_nowait(step)

    def end(self, result: Tensor | Exception) -> None:
        self._steps.put_nowait(result)
