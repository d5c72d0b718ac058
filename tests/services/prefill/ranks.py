"""The attention of a whole prefill group in one process, without a model around it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.messages import Prefill, PrefillRank, Sampling, Scheme
from sps2.common.model.attend import Run, inline
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.spans import Span
from sps2.common.transport.backends import BackendName
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.methods.registry import attend_by
from sps2.services.tasks import gather_all


def config(
    heads: int, kv_heads: int, dim: int = 8, window: int | None = None, layers: int = 1
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=9,
        hidden_size=heads * dim,
        intermediate_size=8,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        max_context=4096,
        norm_eps=1e-5,
        rope=Rope(),
        windows=(window,) * layers,
    )


def random_qkv(tokens: int, config: ModelConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, config.heads, config.head_dim, generator=generator) * 2
    k = torch.randn(tokens, config.kv_heads, config.head_dim, generator=generator) * 2
    v = torch.randn(tokens, config.kv_heads, config.head_dim, generator=generator)
    return q, k, v


class Member(NamedTuple):
    """What a rank's `Group` is made of."""

    plane: Plane
    inbox: Inbox
    request: Prefill


@asynccontextmanager
async def members(
    spans: Sequence[tuple[Span, ...]], scheme: Scheme, backend: BackendName = "inproc"
) -> AsyncIterator[list[Member]]:
    """Ranks that know each other, with these spans."""
    async with AsyncExitStack() as stack:
        planes = [Plane(f"rank-{rank}", backend) for rank in range(len(spans))]
        for plane in planes:
            await plane.start()
            stack.push_async_callback(plane.close)
        peers = [plane.peer for plane in planes]
        for plane in planes:
            for peer in peers:
                plane.introduce(peer)
        group = tuple(PrefillRank((peer,), each) for peer, each in zip(peers, spans, strict=True))
        yield [
            Member(
                plane,
                stack.enter_context(plane.open("r", 0)),
                Prefill("r", 0, b"", group, rank, (), Sampling(1, 0), scheme),
            )
            for rank, plane in enumerate(planes)
        ]


def rows_of(spans: Sequence[Span]) -> Tensor:
    """The positions of a rank's tokens."""
    return torch.cat([torch.arange(*span) for span in spans])


async def attended(
    config: ModelConfig,
    spans: list[tuple[Span, ...]],
    scheme: Scheme,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: BackendName = "inproc",
    run: Run = inline,
) -> tuple[Tensor, list[Attention], list[Group]]:
    """One layer's attention of all ranks, by position; and what computed it."""
    out = torch.full_like(q, float("nan"))
    async with members(spans, scheme, backend) as ranks:

        async def rank_of(rank: int) -> tuple[Attention, Group]:
            rows = rows_of(spans[rank])
            async with asyncio.TaskGroup() as sends:
                group = Group(config, *ranks[rank], run, sends)
                attend = attend_by(group)
                out[rows] = (await attend(0, q[rows], k[rows], v[rows])).out
            return attend, group

        ran = await gather_all(*(rank_of(rank) for rank in range(len(spans))))
    return out, [attend for attend, _ in ran], [group for _, group in ran]


def reference(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, hidden: Tensor | None = None
) -> Tensor:
    """Causal attention in float64. `hidden` [kv_heads, queries, keys] masks more."""
    tokens, heads, dim = q.shape
    size = heads // k.shape[1]
    keys, values = (x.double().repeat_interleave(size, 1) for x in (k, v))
    behind = torch.arange(tokens)[:, None] - torch.arange(tokens)
    unseen = (behind < 0) | (behind >= (window or tokens))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * dim**-0.5
    scores = scores.masked_fill(unseen, -torch.inf)
    if hidden is not None:
        scores = scores.masked_fill(hidden.repeat_interleave(size, 0), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
