"""A prefill group in one process, with the code of `services/prefill`; ranks run one by one."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sps2.common.messages import Exchanged, Prefill, PrefillRank, Sampling, Scheme
from sps2.common.model.attend import inline
from sps2.common.model.llama import Llama
from sps2.common.spans import Span, consecutive, zigzag
from sps2.common.transport.frame import Purpose
from sps2.common.transport.plane import Leaving, Plane
from sps2.kernels.contracts import BLOCK
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.methods.registry import attend_by
from sps2.services.prefill.prompt import exchanged
from sps2.services.tasks import gather_all, root_cause

REQUEST = "quality"

Result = TypeVar("Result")


class Filled(NamedTuple):
    """The results of a group's prefill of a prompt.

    hidden: [tokens, hidden_size], after the final norm, in order of position.
    exchanged: by rank; bytes are those of a model in bfloat16, whatever dtype this one has.
    attention_s: seconds of processor time in attention, summed over ranks and threads.
    keys, values: by layer, [tokens, kv_heads, head_dim]; empty unless requested.
    """

    hidden: Tensor
    exchanged: list[Exchanged]
    attention_s: float
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes by purpose, summed over ranks."""
        purposes = sorted({purpose for each in self.exchanged for purpose in each.sent_bytes})
        return {p: sum(each.sent_bytes.get(p, 0) for each in self.exchanged) for p in purposes}


def fill(
    model: Llama,
    ids: Sequence[int],
    scheme: Scheme,
    ranks: int,
    *,
    spans: Sequence[tuple[Span, ...]] | None = None,
    keep: bool = False,
) -> Filled:
    """Run the layers over a prompt, as a group of `ranks` prefill shards would.

    Args:
        spans: of each rank; None: spans of equal size in the method's layout.
        keep: whether to return the keys and values too.

    Raises:
        Invalid: the scheme does not allow this model, prompt or number of ranks.
    """
    return asyncio.run(_fill(model, ids, scheme, spans or even(len(ids), ranks, scheme), keep))


def even(tokens: int, ranks: int, scheme: Scheme) -> list[tuple[Span, ...]]:
    """Spans of equal size for all ranks, in the method's layout."""
    if scheme.method in ("ring", "ulysses", "usp", "pass_q"):
        return zigzag(tokens, ranks // scheme.ulysses, scheme.ulysses)
    # the same spans for all other methods, so that their bytes and losses are comparable
    return consecutive(tokens, ranks, 0.0, BLOCK if tokens >= ranks * BLOCK else 1)


class _Counted(Group):
    """A member that counts bytes as if the model were in bfloat16, which is what would be sent.

    It also counts processor time of attention, since the machine may be busy with other work.
    """

    attention_s = 0.0

    async def compute(self, work: Callable[[], Result], layer: int = -1) -> Result:
        def timed() -> Result:
            started = time.process_time()
            try:
                return work()
            finally:
                if layer >= 0:
                    self.attention_s += time.process_time() - started

        return await super().compute(timed, layer)

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
        await super().send_to(peers, purpose, layer, at, tensors, head, leaving)
        # log-sum-exps, [rows, heads], are float32 in any model and count in full
        dim = self.config.head_dim
        return len(peers) * sum(
            each.nbytes // 2
            if each.dtype == torch.float32 and each.shape[-1] == dim
            else each.nbytes
            for each in tensors
        )


class _Kept:
    """The `Attend` of a rank, which keeps the keys and values of the first `layers` layers."""

    def __init__(self, attend: Attention, layers: int) -> None:
        self._attend = attend
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer < len(self.keys):
            self.keys[layer], self.values[layer] = k, v
        return (await self._attend(layer, q, k, v)).out


class _Share(NamedTuple):
    """The results of one rank."""

    positions: Tensor
    hidden: Tensor
    exchanged: Exchanged
    attention_s: float
    kept: _Kept


async def _fill(
    model: Llama, ids: Sequence[int], scheme: Scheme, spans: Sequence[tuple[Span, ...]], keep: bool
) -> Filled:
    prompt = torch.tensor(ids)
    async with AsyncExitStack() as stack:
        planes = [Plane(f"rank-{rank}", "inproc") for rank in range(len(spans))]
        for plane in planes:
            await plane.start()
            stack.push_async_callback(plane.close)
        members = [plane.peer for plane in planes]
        group = tuple(PrefillRank((peer,), each) for peer, each in zip(members, spans, strict=True))
        inboxes = [stack.enter_context(plane.open(REQUEST, 0)) for plane in planes]

        async def rank(index: int) -> _Share:
            for peer in members:
                planes[index].introduce(peer)
            request = Prefill(REQUEST, 0, b"", group, index, (), Sampling(0, 0), scheme)
            positions = torch.cat([torch.arange(*span) for span in spans[index]])
            try:
                async with asyncio.TaskGroup() as sends:
                    side = _Counted(
                        model.config, planes[index], inboxes[index], request, inline, sends
                    )
                    attend = attend_by(side)
                    kept = _Kept(attend, model.config.layers if keep else 0)
                    hidden = await model.forward(prompt[positions], positions, kept, side.compute)
            except BaseExceptionGroup as failures:
                raise root_cause(failures) from failures
            return _Share(positions, hidden, exchanged(side, attend), side.attention_s, kept)

        shares = await gather_all(*map(rank, range(len(spans))))
    return _joined(shares)


def _joined(shares: list[_Share]) -> Filled:
    order = torch.cat([share.positions for share in shares]).argsort()

    def ordered(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[order]

    kept = [share.kept for share in shares]
    layers = len(kept[0].keys)
    return Filled(
        ordered([share.hidden for share in shares]),
        [share.exchanged for share in shares],
        sum(share.attention_s for share in shares),
        [ordered([each.keys[layer] for each in kept]) for layer in range(layers)],
        [ordered([each.values[layer] for each in kept]) for layer in range(layers)],
    )
