"""Attention to what precedes a chunk: q goes to the shards that have its KV, states come back."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.errors import PeerLost
from sps2.common.messages import Source
from sps2.common.model.share import Share
from sps2.common.spans import Span
from sps2.common.transport.expected import check_from, state_like
from sps2.kernels import State, merge_many
from sps2.services.prefill.deposit import owners
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.local_pages import LocalPages
from sps2.services.prefill.methods.partial_attention import Rows, in_blocks, visible
from sps2.services.tasks import gather_all

ROWS = 256
"""Queries in one question; a shard runs decode steps between two questions."""
INLINE = 128
"""Up to this many rows, merging states is faster than starting another thread."""


class Question(NamedTuple):
    """Rows and heads of q that are sent to a process with KV of the prefix.

    spans: the parts of the prefix there. head: the first KV head, among those of the whole model.
    """

    peer: str
    spans: tuple[Span, ...]
    rows: Rows
    head: int
    heads: slice


class Prefix:
    """The `Attention` of one rank to its group's tokens and to the prefix before them.

    The prefix is what is cached of the prompt, and its earlier chunks. It works like a decode step
    with many rows: no keys or values move. Every row and layer costs h(2de + 4) bytes per shard
    with some of the prefix, and none for pages of this process. Without `sources` it is just the
    group's attention.

    Args:
        attend: the attention among the group's tokens.
        share: the share of the model's heads that this process has.
        pages: the pages of this process.
    """

    def __init__(
        self,
        attend: Attention,
        group: Group,
        sources: Sequence[Source],
        share: Share,
        pages: LocalPages,
    ) -> None:
        self._own = pages
        self._attend = attend
        self._group = group
        size = group.config.heads // group.config.kv_heads
        self._stop = min(rows.span.start for of in group.rows for rows in of)
        """Where the prefix ends."""
        self._questions = [
            Question(peer, source.spans, rows, head, slice(heads.start * size, heads.stop * size))
            for source in sources
            for peer, head, heads in owners(source.peers, share, group.config.kv_heads * share.size)
            for rows in in_blocks(group.mine, ROWS)
        ]

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        window = group.config.window(layer)
        questions = [
            each
            for each in self._questions
            if any(visible(each.rows.span, span, window) for span in each.spans)
        ]
        answers = [self._ask(layer, each, q) for each in questions]
        if group.scheme.pipelined:
            mine, *theirs = await gather_all(self._attend(layer, q, k, v), *answers)
        else:
            theirs = await gather_all(*answers)
            mine = await self._attend(layer, q, k, v)
        if not theirs:
            return mine
        if len(q) <= INLINE:
            return _merged(mine, questions, theirs)
        return await group.compute(lambda: _merged(mine, questions, theirs), layer)

    async def _ask(self, layer: int, question: Question, q: Tensor) -> State:
        group, at = self._group, question.rows.span.start
        rows = q[question.rows.rows, question.heads]
        if question.peer == group.name:
            about = group.key, layer, at, question.head, rows, self._stop
            own = partial(self._own.attend, *about)
            return await group.compute(own, layer)
        with group.timeline.during("out", layer):
            sent = rows, torch.tensor([self._stop])
            await group.send_to((question.peer,), "prefix_q", layer, at, sent, question.head)
        group.sent["prefix_q"] += rows.nbytes
        state = await group.recv_from(question.peer, "prefix_state", layer, at)
        if not state:
            raise PeerLost(question.peer, f"{question.peer} no longer holds the prefix")
        count, heads, dim = rows.shape
        wanted = state_like(count, heads, dim, rows.dtype)
        check_from(question.peer, "prefix_state", state, wanted)
        group.sent["prefix_state"] += sum(tensor.nbytes for tensor in state)
        return State(*group.up(*state))


def _merged(mine: State, questions: Sequence[Question], theirs: Sequence[State]) -> State:
    """Merge the states that answer `questions` into `mine`."""
    parts: dict[tuple[int, int], list[int]] = {}
    for index, each in enumerate(questions):
        parts.setdefault((each.rows.rows.start, each.heads.start), []).append(index)
    for indices in parts.values():
        rows, heads = questions[indices[0]].rows.rows, questions[indices[0]].heads
        own = State(mine.out[rows, heads], mine.lse[rows, heads])
        merged = merge_many([own, *(theirs[index] for index in indices)])
        own.out.copy_(merged.out)
        own.lse.copy_(merged.lse)
    return mine
