"""One rank's part of a prefill by all processes of its shard, as their leader sees it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from sps2.common.bus.peer import Peer
from sps2.common.errors import Internal
from sps2.common.messages import Advanced, Deposited, Exchanged, Prefill, Prefilled

Item = Advanced | Prefilled | Deposited
Emit = Callable[[Item], None]


class Parts:
    """What the processes of a shard answer to one Prefill, put together.

    Args:
        emit: told how far the first is, when all are through their layers, and when all their KV
            has left.
    """

    def __init__(self, processes: int, emit: Emit) -> None:
        self._emit = emit
        self._processes = processes
        self._prefilled: dict[int, Prefilled] = {}
        self._deposited: list[Deposited] = []

    def take(self, rank: int, item: Item) -> None:
        """What the process of this TP rank answered."""
        match item:
            case Advanced():
                if not rank:  # the others are in the same layer
                    self._emit(item)
            case Prefilled():
                self._prefilled[rank] = item
                if len(self._prefilled) == self._processes:
                    exchanged = merged(
                        [self._prefilled[each].exchanged for each in range(self._processes)]
                    )
                    self._emit(msgspec.structs.replace(self._prefilled[0], exchanged=exchanged))
            case Deposited():
                self._deposited.append(item)
                if len(self._deposited) == self._processes:
                    self._emit(Deposited(sum(part.deposit_bytes for part in self._deposited)))


class Followers:
    """The processes that do what this one does; none on a shard of one, and on followers."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = peers
        self._asking: set[asyncio.Task[None]] = set()

    def prefill(self, request: Prefill, parts: Parts) -> list[asyncio.Future[None]]:
        """Have each of them do its part; their ends.

        They begin even if nobody waits for them, and stop when this process does: all of them have
        a turn for this request, which none may leave out.
        """
        ends = []
        for rank, peer in enumerate(self.peers, 1):
            task = asyncio.create_task(self._ask(peer, request, rank, parts))
            self._asking.add(task)
            task.add_done_callback(self._ended)
            ends.append(asyncio.shield(task))
        return ends

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    async def _ask(self, peer: Peer, request: Prefill, rank: int, parts: Parts) -> None:
        async with peer.stream(request) as items:
            async for item in items:
                parts.take(rank, item)
                if isinstance(item, Deposited):
                    return
        raise Internal(f"{peer.name} ended its part of request {request.request} early")


def merged(parts: Sequence[Exchanged]) -> Exchanged:
    """Bytes and blocks add up; times are the first's, since all of them wait for each other."""
    sent: Counter[str] = Counter()
    for part in parts:
        sent.update(part.sent_bytes)
    return msgspec.structs.replace(
        parts[0],
        sent_bytes=dict(sent),
        blocks=sum(part.blocks for part in parts),
        kept_blocks=sum(part.kept_blocks for part in parts),
        lost=tuple(
            sum(layer) / len(parts) for layer in zip(*(part.lost for part in parts), strict=True)
        ),
    )
