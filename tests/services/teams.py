"""Shards of several processes, all in one: real planes and gloo groups, no bus."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist

from sps2.common.messages import (
    Hold,
    Peer,
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
from sps2.common.model.collectives import Collectives
from sps2.common.model.config import ModelConfig
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.sampler import Sampler
from sps2.common.model.share import Share, share_of
from sps2.common.model.stage import stage_of
from sps2.common.model.tensor_names import shapes
from sps2.common.model.weights import part_of
from sps2.common.spans import Span, paged_split
from sps2.common.transport.plane import Plane
from sps2.services.decode.batch import Batch
from sps2.services.decode.kv.holding import Holding, Holdings, Key
from sps2.services.decode.remote.exchange import Exchange
from sps2.services.decode.remote.prefix import Prefixes
from sps2.services.decode.sequence import Owned, Sequence
from sps2.services.decode.stage_steps import FirstStage, LaterStage
from sps2.services.decode.steps import Following, Leading
from sps2.services.prefill.prompt import run_prompt, turn_of
from sps2.services.tasks import gather_all

from .world import PAGE_TOKENS, Shared, after, before, hashes_of, partition, tiny_config

PAGES = 192


def even_config(heads: int = 12, kv_heads: int = 6) -> ModelConfig:
    """Can be split in 1, 2, 3 and 6."""
    return replace(tiny_config(), heads=heads, kv_heads=kv_heads, head_dim=8, vocab_size=96)


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 1.0)
        for name, shape in shapes(config).items()
    }


def shared_out(config: ModelConfig, tensors: dict[str, torch.Tensor], size: int) -> list[Llama]:
    """The processes' models of one shard."""
    if size == 1:
        return [Llama(config, tensors)]
    store = dist.HashStore()

    def make(rank: int) -> Llama:
        share = Share(rank, size)
        parts = {name: part_of(tensor, name, share) for name, tensor in tensors.items()}
        return Llama(share_of(config, size), parts, collectives=Collectives(share, store))

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(make, range(size)))


def in_stages(config: ModelConfig, tensors: dict[str, torch.Tensor], size: int) -> list[Llama]:
    """The processes' models of one shard that is a pipeline."""
    if size == 1:
        return [Llama(config, tensors)]
    stages = [stage_of(config, rank, size) for rank in range(size)]
    return [Llama(each.of(config), each.weights(tensors), stage=each) for each in stages]


@dataclass
class Process:
    """One of a decode shard; the leader has a batch, the others follow."""

    plane: Plane
    pool: PagePool
    holdings: Holdings
    prefixes: Prefixes
    batch: Batch | None = None
    following: Following | None = None

    def has(self, key: Key) -> bool:
        """Whether any tokens of the request lie here."""
        holding = self.holdings.get(key)
        assert holding is not None
        return bool(holding.pages.runs(holding.span.stop))

    @property
    def peer(self) -> Peer:
        return self.plane.peer


class Teams:
    """Prefill and decode shards, each a list of its processes."""

    def __init__(self) -> None:
        self.prefill: list[list[tuple[Plane, Llama]]] = []
        self.decode: list[list[Process]] = []
        self.tokens: list[tuple[Key, Token]] = []
        self.keeps = False
        """Whether full pages of prompts are cached."""
        self.replies: list[Prefilled] = []
        """Of the last prefill."""

    async def run(
        self,
        request: str,
        prompt: list[int],
        sampling: Sampling,
        scheme: Scheme | None = None,
        shared: Shared = (),
    ) -> list[Token]:
        """Prefill and decode one request; its full pages stay.

        Args:
            shared: the cached prefix, by shard.
        """
        held = await self.hold(request, prompt, sampling, shared)
        try:
            spans = [shard[0].span for shard in held]
            first = await self.fill(request, prompt, sampling, scheme or Scheme(), spans, shared)
            if first.finish is not None:
                return [first]
            await gather_all(*(each.filled.wait() for shard in held for each in shard))
            for process in itertools.chain(*self.decode) if self.keeps else ():
                process.holdings.cache((request, 0), hashes_of(prompt))
            return await self.generate(request, prompt, sampling, first)
        finally:
            leader = self.decode[-1][0]
            assert leader.batch is not None
            await leader.batch.leave((request, 0))
            for shard in self.decode:
                for process in shard:
                    process.holdings.release((request, 0))

    async def hold(
        self, request: str, prompt: list[int], sampling: Sampling, shared: Shared
    ) -> list[list[Holding]]:
        first = before(shared)
        spans = [
            after(span, first)
            for span in paged_split(len(prompt) - first, [1] * len(self.decode), PAGE_TOKENS)
        ]
        last = len(self.decode) - 1
        return [
            [
                await process.holdings.hold(
                    Hold(
                        request,
                        0,
                        span,
                        span.tokens + (sampling.max_tokens if index == last else 0),
                        hashes_of(prompt),
                        tuple(part for at, part in shared if at == index),
                    )
                )
                for process in shard
            ]
            for index, (shard, span) in enumerate(zip(self.decode, spans, strict=True))
        ]

    async def fill(
        self,
        request: str,
        prompt: list[int],
        sampling: Sampling,
        scheme: Scheme,
        kept: list[Span],
        shared: Shared,
    ) -> Token:
        assigned = [
            tuple(after(span, before(shared)) for span in own)
            for own in partition(len(prompt) - before(shared), len(self.prefill), scheme)
        ]
        sources = tuple(
            Source(tuple(process.peer for process in shard), parts)
            for index, shard in enumerate(self.decode)
            if (parts := tuple(part for at, part in shared if at == index))
        )
        group = list(zip(self.prefill, assigned, strict=False))
        members = tuple(
            PrefillRank(tuple(plane.peer for plane, _ in shard), spans) for shard, spans in group
        )
        targets = tuple(
            Target(tuple(process.peer for process in shard), span)
            for shard, span in zip(self.decode, kept, strict=True)
            if span.tokens
        )
        ids = torch.tensor(prompt, dtype=torch.int32).numpy().tobytes()
        replies = self.replies = []
        with ExitStack() as stack:
            inboxes = {
                plane.name: stack.enter_context(plane.open(request, 0))
                for shard, _ in group
                for plane, _ in shard
            }

            async def part(plane: Plane, model: Llama, rank: int) -> None:
                prefill = Prefill(
                    request, 0, ids, members, rank, targets, sampling, scheme, sources
                )
                turn = turn_of(model, prefill)
                inbox = inboxes[plane.name]
                try:
                    await run_prompt(model, plane, inbox, prefill, inline, replies.append, turn)
                finally:
                    if turn is not None:
                        turn.stop()

            await gather_all(
                *(
                    part(plane, model, rank)
                    for rank, (shard, _) in enumerate(group)
                    for plane, model in shard
                )
            )
        (first,) = [reply.token for reply in replies if reply.token]
        return first

    async def generate(
        self, request: str, prompt: list[int], sampling: Sampling, first: Token
    ) -> list[Token]:
        *others, owner = self.decode
        key = (request, 0)
        for rank, process in enumerate(owner):
            holders = [shard[rank].peer for shard in others if shard[rank].has(key)]
            for peer in holders:
                process.plane.introduce(peer)
            holding = process.holdings.get(key)
            assert holding is not None
            names = tuple(peer.name for peer in holders)
            if process.following is not None:
                sequence = Sequence(holding, names, len(prompt), Token(0, 0))
                process.following.sequences[key] = sequence
                continue
            sampler = Sampler(sampling, torch.tensor(prompt))
            most = len(prompt) + sampling.left
            sampler.seen(first.id)
            ended = asyncio.get_running_loop().create_future()
            owned = Owned(holding, names, len(prompt), first, sampler, ended, most, lambda: None)
        leader = owner[0].batch
        assert leader is not None
        await leader.generate(owned)
        return [first, *(token for name, token in self.tokens if name == key)]


@asynccontextmanager
async def teams(
    config: ModelConfig,
    tensors: dict[str, torch.Tensor],
    prefill: tuple[int, int] = (1, 1),
    decode: tuple[int, int] = (1, 1),
    backend: str = "inproc",
) -> AsyncIterator[Teams]:
    """Shards of each role as (how many, processes of each)."""

    async def shards(count: int, size: int) -> list[list[Llama]]:
        make = partial(shared_out, config, tensors, size)
        return [await asyncio.to_thread(make) for _ in range(count)]

    groups = await shards(*prefill), await shards(*decode)
    async with teams_of(*groups, backend) as made:
        yield made
    for model in itertools.chain(*groups[0], *groups[1]):
        if model._collectives is not None:
            model._collectives.close()


@asynccontextmanager
async def teams_of(
    prefill: list[list[Llama]], decode: list[list[Llama]], backend: str = "inproc"
) -> AsyncIterator[Teams]:
    """Around models: for each shard, those of its processes."""
    made = Teams()
    async with AsyncExitStack() as stack:

        async def plane(name: str) -> Plane:
            plane = Plane(name, backend)  # type: ignore[arg-type]
            await plane.start()
            stack.push_async_callback(plane.close)
            return plane

        for index, models in enumerate(prefill):
            names = [f"prefill-{index}.{rank}/t" for rank in range(len(models))]
            made.prefill.append(
                [(await plane(name), m) for name, m in zip(names, models, strict=True)]
            )
        for index, models in enumerate(decode):
            planes = [await plane(f"decode-{index}.{rank}/t") for rank in range(len(models))]
            peers = [each.peer for each in planes]
            made.decode.append([])
            for rank, (here, model) in enumerate(zip(planes, models, strict=True)):
                pool = PagePool(model.config, PAGES, PAGE_TOKENS, model.dtype)
                holdings = Holdings.of(model, pool, here)
                exchange = Exchange(model.config, here, pool, holdings)
                prefixes = Prefixes(model.config, here, pool, holdings)
                each = Process(here, pool, holdings, prefixes)
                made.decode[-1].append(each)
                if rank and model.stage is not None:
                    for peer in peers:
                        here.introduce(peer)
                    each.following = LaterStage(model, here, pool, exchange)
                    each.following.stages = [peer.name for peer in peers]
                    stepping = asyncio.create_task(each.following.run())
                elif rank:
                    here.introduce(peers[0])
                    each.following = Following(model, here, pool, exchange)
                    stepping = asyncio.create_task(each.following.run())
                else:
                    leading = (
                        Leading(here, peers[1:])
                        if model.stage is None
                        else FirstStage(model, here, peers[1:])
                    )
                    each.batch = Batch(model, pool, exchange, leading, made.tokens.extend)
                    stepping = asyncio.create_task(each.batch.run())
                stack.push_async_callback(partial(_cancel, stepping))
        yield made


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
