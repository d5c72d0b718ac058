"""How the leader of a shard combines what its processes answer to one Prefill."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from sps2.common.bus.peer import Peer
from sps2.common.errors import Internal
from sps2.common.messages import Advanced, Deposited, Exchanged, Prefill, Prefilled
from sps2.common.model.stage import Stage

Item = Advanced | Prefilled | Deposited
Emit = Callable[[Item], None]


class Parts:
    """Combines the answers of a shard's processes to one Prefill.

    Args:
        emit: called with their progress, once when all have run their layers, and once when all
            have sent their KV.
        stage: of the first process, if each process has other layers.
    """

    def __init__(self, processes: int, emit: Emit, stage: Stage | None = None) -> None:
        self._emit = emit
        self._processes = processes
        self._stage = stage
        self._advanced: dict[int, int] = {}
        self._prefilled: dict[int, Prefilled] = {}
        self._deposited: list[Deposited] = []

    def take(self, rank: int, item: Item) -> None:
        """Add an answer of the process with TP rank `rank`."""
        match item:
            case Advanced():
                if self._stage is not None:
                    self._advanced[rank] = item.tokens
                    self._emit(Advanced(sum(self._advanced.values()) // self._processes))
                elif not rank:  # the others are in the same layer
                    self._emit(item)
            case Prefilled():
                self._prefilled[rank] = item
                if len(self._prefilled) == self._processes:
                    parts = [self._prefilled[each].exchanged for each in range(self._processes)]
                    exchanged = merged(parts, self._stage is not None)
                    self._emit(msgspec.structs.replace(self._prefilled[0], exchanged=exchanged))
            case Deposited():
                self._deposited.append(item)
                if len(self._deposited) == self._processes:
                    sent = sum(part.deposit_bytes for part in self._deposited)
                    saved = sum(part.saved_bytes for part in self._deposited)
                    self._emit(Deposited(sent, saved))


class Followers:
    """The followers of this process; empty on a shard of one process, and on followers."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = peers
        self._asking: set[asyncio.Task[None]] = set()

    def prefill(self, request: Prefill, parts: Parts, in_turns: bool) -> list[asyncio.Future[None]]:
        """Have each follower run its part; returns futures of their ends.

        With `in_turns` they begin even if nobody awaits the futures, and stop when this process
        does: each process has a place for this request in its execution order, and must use it.
        """
        ends = []
        for rank, peer in enumerate(self.peers, 1):
            task = asyncio.create_task(self._ask(peer, request, rank, parts))
            self._asking.add(task)
            task.add_done_callback(self._ended)
            ends.append(asyncio.shield(task) if in_turns else task)
        return ends

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also if nobody waits any more

    async def _ask(self, peer: Peer, request: Prefill, rank: int, parts: Parts) -> None:
        async with peer.stream(request) as items:
            async for item in items:
                parts.take(rank, item)
                if isinstance(item, Deposited):
                    return
        raise Internal(f"{peer.name} ended its part of request {request.request} early")


def merged(parts: Sequence[Exchanged], are_stages: bool = False) -> Exchanged:
    """Add up bytes and blocks.

    Args:
        are_stages: the processes have other layers, one after the other, so that times add up.
            Otherwise they have other heads of each layer, and times are those of the first, since
            all wait for each other.
    """
    sent: Counter[str] = Counter()
    for part in parts:
        sent.update(part.sent_bytes)
    merged = msgspec.structs.replace(
        parts[0],
        sent_bytes=dict(sent),
        blocks=sum(part.blocks for part in parts),
        kept_blocks=sum(part.kept_blocks for part in parts),
        saved_bytes=sum(part.saved_bytes for part in parts),
    )
    if are_stages:
        return msgspec.structs.replace(
            merged,
            compute_s=sum(part.compute_s for part in parts),
            attention_s=sum(part.attention_s for part in parts),
            exchange_s=sum(part.exchange_s for part in parts),
            hidden_s=sum(part.hidden_s for part in parts),
            lost=tuple(itertools.chain(*(part.lost for part in parts))),
        )
    lost = zip(*(part.lost for part in parts), strict=True)
    return msgspec.structs.replace(merged, lost=tuple(sum(layer) / len(parts) for layer in lost))
