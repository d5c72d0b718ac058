"""What the ranks of a prefill group share: which rank has which tokens, and how they exchange."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from sps2.common.errors import Internal, Invalid
from sps2.common.messages import ExactMethod, Prefill
from sps2.common.model.attend import Run
from sps2.common.model.config import ModelConfig
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like, check_from, state_like
from sps2.common.transport.frame import Purpose, frame_for
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Leaving, Plane
from sps2.kernels import State
from sps2.services.prefill.backlog import Backlog
from sps2.services.prefill.methods.partial_attention import Rows, rows_of
from sps2.services.prefill.timeline import Timeline

Result = TypeVar("Result")

EXACT = get_args(ExactMethod)
"""Methods whose exchange is packed; the others have forms of their own for what they send."""


class Attention(Protocol):
    """Attention of one rank, computed together with its group."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        """The attention state of the rank's queries over all keys of the group that they see.

        Args:
            q: [tokens, heads, head_dim], rotated, contiguous.
            k, v: [tokens, kv_heads, head_dim], contiguous.
        """
        ...


class Group:
    """One rank's side of one prefill.

    Args:
        inbox: receives the frames of this request and epoch.
        run: runs arithmetic beside the loop, which moves tensors meanwhile.
        sends: runs background work; if it fails, the rank fails.
        tp_rank: the TP rank of this process. It exchanges with processes of the same TP rank, which
            have the same heads.
        timeline: records when the rank computes and exchanges.
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
        """For each rank: its spans, and where they lie in its tensors."""
        self.timeline = timeline or Timeline(plane.device)
        self.sent: Counter[Purpose] = Counter()
        """Bytes of payload sent to the group, by purpose."""
        self.saved_bytes = 0
        """Bytes that lossless packing saved of them."""
        gbit = self.scheme.lossless
        self._packs = gbit is not None and lossless.pays(gbit)
        self.key = (request.request, request.epoch)
        self._names = [member.peers[tp_rank].name for member in request.group]
        self._plane = plane
        self._inbox = inbox
        self._run = run
        self._sends = sends
        self.backlog = Backlog()
        """The work beside the layers."""
        self._leaving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def mine(self) -> list[Rows]:
        return self.rows[self.rank]

    @property
    def name(self) -> str:
        """The name of this process on the data plane."""
        return self._names[self.rank]

    async def compute(self, work: Callable[[], Result], layer: int = -1) -> Result:
        """Run `work` beside the loop, in the order of the calls; returns its result."""

        def timed() -> Result:
            with self.timeline.during("compute", layer):
                return work()

        return await self._run(timed)

    async def send(
        self, rank: int, purpose: Purpose, layer: int, at: int, tensors: Sequence[Tensor]
    ) -> None:
        """Send tensors to a rank, which receives them by the same purpose, layer and `at`."""
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
        if self.scheme.method in EXACT:
            tensors, saved = await self.packed(layer, tensors)
            self.saved_bytes += saved * len(ranks)
        leaving = partial(self._on_its_way, layer)
        nbytes = await self.send_to(names, purpose, layer, at, tensors, leaving=leaving)
        self.sent[purpose] += nbytes

    async def packed(self, layer: int, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], int]:
        """Tensors as they are to be sent, packed losslessly if that pays; and the bytes saved."""
        if not self._packs:
            return tensors, 0
        plain = await self.down(*tensors)
        carried = await self.compute(partial(lossless.pack, plain), layer)
        return carried, sum(each.nbytes for each in plain) - sum(each.nbytes for each in carried)

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
        """Send tensors of this request to peers, of the group or not; returns the bytes in all."""
        request, epoch = self.key
        frame = frame_for(purpose, (request,), (epoch,), layer, at, tuple(tensors), head)
        if len(peers) == 1:
            await self._plane.send(peers[0], frame, tensors, leaving)
        else:
            await self._plane.send_all(peers, frame, tensors, leaving)
        return frame.nbytes * len(peers)

    async def quiet(self) -> None:
        """Wait until no frame is being sent to the group."""
        await self._idle.wait()

    def up(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Move tensors from the host to the device that this process computes on."""
        return self._plane.device.up(tensors)

    async def down(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Move tensors from that device to the host."""
        return await self._plane.device.down(tensors)

    async def recv(
        self, rank: int, purpose: Purpose, layer: int, at: int, wanted: Sequence[Like]
    ) -> tuple[Tensor, ...]:
        """The tensors that a rank sent by this purpose, layer and `at`, on this process's device.

        Raises:
            PeerLost: the rank is gone.
            Internal: the tensors do not match `wanted`.
        """
        name = self._names[rank]
        tensors = await self.recv_from(name, purpose, layer, at)
        if lossless.are_packed(tensors):
            try:
                tensors = await self.compute(partial(lossless.unpack, tensors, wanted), layer)
            except Invalid as error:
                raise Internal(f"a {purpose} frame from {name}: {error}") from error
        check_from(name, purpose, tensors, wanted)
        return self.up(*tensors)

    async def recv_state(
        self, rank: int, layer: int, at: int, rows: int, heads: int, dtype: torch.dtype
    ) -> State:
        """The attention state of `rows` rows and `heads` heads that a rank sent; see `recv`."""
        wanted = state_like(rows, heads, self.config.head_dim, dtype)
        return State(*await self.recv(rank, "state", layer, at, wanted))

    async def recv_from(
        self, peer: str, purpose: Purpose, layer: int, at: int
    ) -> tuple[Tensor, ...]:
        """The tensors that a peer, of the group or not, sent: on the host, not checked."""
        with self.timeline.during("in", layer):
            return await self._inbox.recv(purpose, layer, at, peer)

    def name_of(self, rank: int) -> str:
        """The data-plane name of a rank's process that this one exchanges with."""
        return self._names[rank]

    def tokens(self, rank: int) -> int:
        """How many tokens a rank has."""
        return sum(span.tokens for span, _ in self.rows[rank])

    def background(
        self, layer: int, tensors: Sequence[Tensor], work: Coroutine[Any, Any, None]
    ) -> None:
        """Run a layer's `work` on `tensors` beside the layers; the rank ends only after it."""
        nbytes = sum(tensor.nbytes for tensor in tensors)
        self.backlog.add(self._sends.create_task(work), layer, nbytes)

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
