"""A whole group of shards in one process: real planes, pools, rings and batches, no bus."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from sps2.common.device import HOST, Device
from sps2.common.messages import (
    Deposited,
    Hold,
    Prefill,
    Prefilled,
    PrefillRank,
    Sampling,
    Scheme,
    Source,
    Target,
    Token,
)
from sps2.common.model.attend import inline
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.pages import PagePool
from sps2.common.model.sampler import Sampler
from sps2.common.model.tensor_names import shapes
from sps2.common.page_hashes import page_hashes
from sps2.common.spans import Span, consecutive, paged_split, zigzag
from sps2.common.transport.plane import Plane
from sps2.kernels.contracts import BLOCK
from sps2.services.decode.batch import Batch
from sps2.services.decode.kv.holding import Holding, Holdings, Key
from sps2.services.decode.remote.exchange import Exchange
from sps2.services.decode.remote.prefix import Prefixes
from sps2.services.decode.sequence import Owned
from sps2.services.decode.steps import Leading
from sps2.services.prefill.prompt import run_prompt
from sps2.services.tasks import end, gather_all

PAGE_TOKENS = 4
RING = Scheme()
Shared = Sequence[tuple[int, Span]]
"""Cached pages that a request uses: number of the decode shard, tokens."""


def tiny_config(window: int | None = None) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=16,
        max_context=512,
        norm_eps=1e-5,
        rope=Rope(),
        windows=(window, None, window),
    )


def tiny_model(window: int | None = None, seed: int = 0, device: Device = HOST) -> Llama:
    generator = torch.Generator().manual_seed(seed)
    config = tiny_config(window)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 1.0)
        for name, shape in shapes(config).items()
    }
    return Llama(config, dict(zip(tensors, device.up(list(tensors.values())), strict=True)))


async def oracle(model: Llama, prompt: list[int], tokens: int) -> tuple[torch.Tensor, list[int]]:
    """Logits of the whole prompt, and the greedy answer, with all KV in one place."""
    positions = torch.arange(len(prompt))
    attend = LocalAttention(model.config, positions)
    logits = model.logits(await model.forward(torch.tensor(prompt), positions, attend))
    answer = [int(logits[-1].argmax())]
    while len(answer) < tokens:
        attend.positions = torch.tensor([len(prompt) + len(answer) - 1])
        hidden = await model.forward(torch.tensor(answer[-1:]), attend.positions, attend)
        answer.append(int(model.logits(hidden)[0].argmax()))
    return logits, answer


@dataclass
class DecodeShard:
    plane: Plane
    pool: PagePool
    holdings: Holdings
    prefixes: Prefixes
    batch: Batch
    tokens: list[tuple[Key, Token]]


class Filled(NamedTuple):
    """What one rank answered."""

    prefilled: Prefilled
    deposited: Deposited


def before(shared: Shared) -> int:
    """How long the prefix is."""
    return max((span.stop for _, span in shared), default=0)


def after(span: Span, tokens: int) -> Span:
    """The same span behind so many tokens."""
    return Span(span.start + tokens, span.stop + tokens)


def hashes_of(prompt: list[int]) -> tuple[bytes, ...]:
    return page_hashes(b"", struct.pack(f"<{len(prompt)}i", *prompt), PAGE_TOKENS)


def partition(tokens: int, ranks: int, scheme: Scheme) -> list[tuple[Span, ...]]:
    """Spans as a method wants them; those of ranks that would have none are left out."""
    if scheme.method in ("ring", "ulysses", "usp", "pass_q"):
        assigned = zigzag(tokens, ranks // scheme.ulysses, scheme.ulysses)
        return [spans for spans in assigned if any(span.tokens for span in spans)]
    align = BLOCK if scheme.method == "csa" else 1
    return consecutive(tokens, min(tokens // align, ranks), 0.0, align)


class World:
    """`prefill` prefill shards and `decode` decode shards around one model."""

    def __init__(self, model: Llama, prefill: list[Plane], decode: list[DecodeShard]) -> None:
        self.model = model
        self.prefill = prefill
        self.decode = decode
        self.has_room = asyncio.Event()
        """Whether answers that grow get pages."""
        self.has_room.set()
        self.asked: list[str] = []
        """Requests that have asked for pages."""

    async def run(
        self,
        request: str,
        prompt: list[int],
        sampling: Sampling,
        sp_degree: int | None = None,
        scheme: Scheme = RING,
        shared: Shared = (),
        keep: bool = False,
        growth: int | None = None,
    ) -> tuple[list[Filled], list[Token]]:
        """Prefill and decode one request; its pages are given back in the end.

        Args:
            shared: the cached prefix, by shard.
            keep: cache its full pages.
            growth: tokens of the answer with room at first, and added with `has_room`; None: all.
        """
        key = (request, 0)
        holdings = await self.hold(request, prompt, sampling, shared, growth)
        growing: list[asyncio.Task[None]] = []
        try:
            replies = await self.fill(
                request, prompt, sampling, holdings, sp_degree, scheme, None, shared
            )
            first = next(reply.prefilled.token for reply in replies if reply.prefilled.token)
            if first.finish is not None:
                return replies, [first]
            await gather_all(*(holding.filled.wait() for _, holding in holdings))
            for shard, _ in holdings if keep else ():
                shard.holdings.cache(key, hashes_of(prompt))
            owner, holding = holdings[-1]
            for shard, _ in holdings:
                owner.plane.introduce(shard.plane.peer)
            sampler = Sampler(sampling, torch.tensor(prompt))
            most = len(prompt) + sampling.left
            sampler.seen(first.id)
            others = tuple(shard.plane.name for shard, _ in holdings[:-1])
            ended = asyncio.get_running_loop().create_future()

            def ask() -> None:
                self.asked.append(request)
                growing.append(asyncio.create_task(self.grow(owner, holding, growth or 0)))

            sequence = Owned(holding, others, len(prompt), first, sampler, ended, most, ask)
            await owner.batch.generate(sequence)
            return replies, [first, *(token for name, token in owner.tokens if name == key)]
        finally:
            await gather_all(*map(end, growing))
            for shard, _ in holdings:
                await shard.batch.leave(key)
                shard.holdings.release(key)

    async def grow(self, owner: DecodeShard, holding: Holding, tokens: int) -> None:
        await self.has_room.wait()
        capacity = len(holding.own) * PAGE_TOKENS + tokens
        await owner.holdings.grow(holding.key, capacity)
        owner.batch.grown(holding.key)

    async def hold(
        self,
        request: str,
        prompt: list[int],
        sampling: Sampling,
        shared: Shared = (),
        growth: int | None = None,
    ) -> list[tuple[DecodeShard, Holding]]:
        first = before(shared)
        spans = paged_split(len(prompt) - first, [1] * len(self.decode), PAGE_TOKENS)
        found = []
        for index, (shard, own) in enumerate(zip(self.decode, spans, strict=True)):
            span = after(own, first)
            is_owner = index == len(self.decode) - 1
            answer = (sampling.max_tokens if growth is None else growth) if is_owner else 0
            parts = tuple(part for at, part in shared if at == index)
            if span.tokens + answer or parts:
                capacity = span.tokens + answer
                hold = Hold(request, 0, span, capacity, hashes_of(prompt), parts)
                found.append((shard, await shard.holdings.hold(hold)))
        return found

    async def fill(
        self,
        request: str,
        prompt: list[int],
        sampling: Sampling,
        holdings: list[tuple[DecodeShard, Holding]],
        sp_degree: int | None = None,
        scheme: Scheme = RING,
        spans: list[tuple[Span, ...]] | None = None,
        shared: Shared = (),
    ) -> list[Filled]:
        group = self.prefill[: sp_degree or len(self.prefill)]
        first = before(shared)
        spans = spans or [
            tuple(after(span, first) for span in own)
            for own in partition(len(prompt) - first, len(group), scheme)
        ]
        assigned = list(zip(group, spans, strict=False))
        sources = tuple(
            Source(
                (shard.plane.peer,),
                tuple(part for at, part in shared if at == index),
            )
            for index, shard in enumerate(self.decode)
            if index in dict(shared)
        )
        ranks = tuple(PrefillRank((p.peer,), spans) for p, spans in assigned)
        targets = tuple(
            Target((shard.plane.peer,), holding.span)
            for shard, holding in holdings
            if holding.span.tokens
        )
        ids = torch.tensor(prompt, dtype=torch.int32).numpy().tobytes()
        with ExitStack() as stack:
            inboxes = [stack.enter_context(plane.open(request, 0)) for plane, _ in assigned]
            replies: dict[int, Prefilled] = {}
            deposited = await gather_all(
                *(
                    run_prompt(
                        self.model,
                        plane,
                        inboxes[rank],
                        Prefill(request, 0, ids, ranks, rank, targets, sampling, scheme, sources),
                        inline,
                        partial(replies.__setitem__, rank),
                    )
                    for rank, (plane, _) in enumerate(assigned)
                )
            )
            return [Filled(replies[rank], each) for rank, each in enumerate(deposited)]


@asynccontextmanager
async def world(
    model: Llama,
    prefill: int,
    decode: int,
    backend: str = "inproc",
    pages: int = 64,
    kv: torch.dtype | None = None,
    device: Device = HOST,
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:

        async def plane(name: str) -> Plane:
            made = Plane(name, backend, device)
            await made.start()
            stack.push_async_callback(made.close)
            return made

        sources = [await plane(f"prefill-{index}/w") for index in range(prefill)]
        shards = []
        for index in range(decode):
            listening = await plane(f"decode-{index}/w")
            pool = PagePool(model.config, pages, PAGE_TOKENS, kv or model.dtype, device.place)
            holdings = Holdings.of(model, pool, listening)
            exchange = Exchange(model.config, listening, pool, holdings)
            tokens: list[tuple[Key, Token]] = []
            batch = Batch(model, pool, exchange, Leading(listening, ()), tokens.extend)
            stepping = asyncio.create_task(batch.run())
            stack.push_async_callback(_cancel, stepping)
            prefixes = Prefixes(model.config, listening, pool, holdings)
            shards.append(DecodeShard(listening, pool, holdings, prefixes, batch, tokens))
        yield World(model, sources, shards)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def greedy(max_tokens: int, **changes: object) -> Sampling:
    return Sampling(max_tokens=max_tokens, seed=0, temperature=0.0, **changes)  # type: ignore[arg-type]
