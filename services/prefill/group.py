"""What the ranks of a prefill group share: who has which tokens, and the way to each other."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sps2.common.messages import Prefill
from sps2.common.model.attend import Run
from sps2.common.model.config import ModelConfig
from sps2.common.transport.expected import Like, check_from, state_like
from sps2.common.transport.frame import Purpose, frame_for
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Leaving, Plane
from sps2.kernels import State
from sps2.services.prefill.behind import Behind
from sps2.services.prefill.methods.attended import Rows, rows_of
from sps2.services.prefill.timeline import Timeline

Result = TypeVar("Result")


class Attention(Protocol):
    """Attention of one rank, with the help of its group."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        """The state of the rank's queries over all keys of the group that they may see.

        Args:
            q: [tokens, heads, head_dim], rotated, contiguous.
            k, v: [tokens, kv_heads, head_dim], contiguous.
        """
        ...


class Group:
    """One rank's side of one prefill.

    Args:
        inbox: of this request and epoch.
        run: where arithmetic is done while the loop moves tensors.
        sends: sends that nobody waits for; their failure fails the rank.
        tp_rank: of this process; it exchanges with the processes of the same TP rank, which have
            the same heads.
        timeline: to fill in.
    """

    def __init__(
        self,
        config: ModelConfig,
        plane: Plane,
        inbox: Inbox,
        request: Prefill,
        run: Run,
        sends: asyncio.TaskGroup,
        tp_rank: int = 0,
        timeline: Timeline | None = None,
    ) -> None:
        self.config = config
        self.scheme = request.scheme
        self.rank = request.rank
        self.ranks = len(request.group)
        self.rows = [rows_of(member.spans) for member in request.group]
        """By rank: its spans, and where they lie in its tensors."""
        self.timeline = timeline or Timeline(plane.device)
        self.sent: Counter[Purpose] = Counter()
        """Bytes of payload."""
        self.key = (request.request, request.epoch)
        self._names = [member.peers[tp_rank].name for member in request.group]
        self._plane = plane
        self._inbox = inbox
        self._run = run
        self._sends = sends
        self.behind = Behind()
        """What is done beside the layers."""
        self._leaving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def mine(self) -> list[Rows]:
        return self.rows[self.rank]

    @property
    def name(self) -> str:
        """Of this process, on the data plane."""
        return self._names[self.rank]

    async def compute(self, work: Callable[[], Result], layer: int = -1) -> Result:
        """The result of `work`, computed beside the loop, in the order of the calls."""

        def timed() -> Result:
            with self.timeline.during("compute", layer):
                return work()

        return await self._run(timed)

    async def send(
        self, rank: int, purpose: Purpose, layer: int, at: int, tensors: Sequence[Tensor]
    ) -> None:
        """Send tensors to a rank, which gets them by the same three numbers."""
        await self.send_all((rank,), purpose, layer, at, tensors)

    async def send_all(
        self,
        ranks: Sequence[int],
        purpose: Purpose,
        layer: int,
        at: int,
        tensors: Sequence[Tensor],
    ) -> None:
        """Send the same tensors to several ranks."""
        names = [self._names[rank] for rank in ranks]
        leaving = partial(self._on_its_way, layer)
        nbytes = await self.send_to(names, purpose, layer, at, tensors, leaving=leaving)
        self.sent[purpose] += nbytes

    async def send_to(
        self,
        peers: Sequence[str],
        purpose: Purpose,
        layer: int,
        at: int,
        tensors: Sequence[Tensor],
        head: int = 0,
        leaving: Leaving = nullcontext,
    ) -> int:
        """Send tensors of this request to peers, of the group or not; how many bytes in all."""
        request, epoch = self.key
        frame = frame_for(purpose, (request,), (epoch,), layer, at, tuple(tensors), head)
        if len(peers) == 1:
            await self._plane.send(peers[0], frame, tensors, leaving)
        else:
            await self._plane.send_all(peers, frame, tensors, leaving)
        return frame.nbytes * len(peers)

    async def quiet(self) -> None:
        """Wait until nothing is on its way to the group."""
        await self._idle.wait()

    def up(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the host where this process computes."""
        return self._plane.device.up(tensors)

    async def down(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same tensors on the host."""
        return await self._plane.device.down(tensors)

    async def recv(
        self, rank: int, purpose: Purpose, layer: int, at: int, wanted: Sequence[Like]
    ) -> tuple[Tensor, ...]:
        """What a rank sent by these three numbers, where this process computes.

        Raises:
            PeerLost: the rank is gone.
            Internal: it sent tensors that are not like those wanted.
        """
        tensors = await self.recv_from(self._names[rank], purpose, layer, at)
        check_from(self._names[rank], purpose, tensors, wanted)
        return self.up(*tensors)

    async def recv_state(
        self, rank: int, layer: int, at: int, rows: int, heads: int, dtype: torch.dtype
    ) -> State:
        """The attention state of so many rows and heads that a rank sent; as `recv`."""
        wanted = state_like(rows, heads, self.config.head_dim, dtype)
        return State(*await self.recv(rank, "state", layer, at, wanted))

    async def recv_from(
        self, peer: str, purpose: Purpose, layer: int, at: int
    ) -> tuple[Tensor, ...]:
        """What a peer, of the group or not, sent: on the host, and not checked."""
        with self.timeline.during("in", layer):
            return await self._inbox.recv(purpose, layer, at, peer)

    def name_of(self, rank: int) -> str:
        """Of the process of a rank that this one exchanges with."""
        return self._names[rank]

    def tokens(self, rank: int) -> int:
        """How many a rank has."""
        return sum(span.tokens for span, _ in self.rows[rank])

    def background(
        self, layer: int, tensors: Sequence[Tensor], work: Coroutine[Any, Any, None]
    ) -> None:
        """Do a layer's `work` on `tensors` beside the layers; the rank is not done before it is."""
        nbytes = sum(tensor.nbytes for tensor in tensors)
        self.behind.add(self._sends.create_task(work), layer, nbytes)

    @contextmanager
    def _on_its_way(self, layer: int) -> Iterator[None]:
        self._leaving += 1
        self._idle.clear()
        try:
            with self.timeline.during("out", layer):
                yield
        finally:
            self._leaving -= 1
            if not self._leaving:
                self._idle.set()
