"""One rank's part of a prompt: all layers on its spans; the last rank draws the first token."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial

import torch
from torch import Tensor

from sps2.common.device import Device
from sps2.common.grammar import Grammars
from sps2.common.messages import (
    Deposited,
    Exchanged,
    Prefill,
    Prefilled,
    Received,
    TokenLogprobs,
)
from sps2.common.model.attend import Run
from sps2.common.model.collectives import Turn
from sps2.common.model.llama import Llama
from sps2.common.model.sampler import Sampler, prompt_logprobs
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.services.prefill.deposit import Deposit
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.local_pages import NO_PAGES, LocalPages
from sps2.services.prefill.methods.csa import Csa
from sps2.services.prefill.methods.partial_attention import Seen
from sps2.services.prefill.methods.registry import attend_by
from sps2.services.prefill.passes import Passes
from sps2.services.prefill.pooling import pooled
from sps2.services.prefill.prefix import Prefix
from sps2.services.prefill.stage import of_stage, through
from sps2.services.prefill.timeline import Timeline
from sps2.services.tasks import root_cause

LOGITS_ROWS = 256
"""Rows of prompt log-probabilities computed at once: limits the memory of their logits."""


def turn_of(model: Llama, request: Prefill) -> Turn | None:
    """The turn in which a shard's processes run `request.rank`'s part; None for one process."""
    spans = request.group[request.rank].spans
    tokens = sum(span.tokens for span in spans)
    last = spans[-1].stop == len(request.prompt) // 4
    scored = 0 if request.sampling.prompt_logprobs is None else tokens - last
    return model.turn(tokens, -(-scored // LOGITS_ROWS) + last)


async def run_prompt(
    model: Llama,
    plane: Plane,
    inbox: Inbox,
    request: Prefill,
    run: Run,
    prefilled: Callable[[Prefilled], None],
    turn: Turn | None = None,
    pages: LocalPages = NO_PAGES,
    passes: Passes | None = None,
    advanced: Callable[[int], None] = lambda layers: None,
    timeline: Timeline | None = None,
    urgency: Callable[[], float] = lambda: 0.0,
    grammars: Grammars | None = None,
) -> Deposited:
    """Run `request.rank`'s part; returns once its keys and values are kept or sent.

    Args:
        inbox: of this request; it is open at every member before any of them begins.
        prefilled: called once, as soon as everything is computed.
        turn: from `turn_of`; only the first process returns tokens and log-probabilities.
        pages: of this process, for KV that stays in it and for prefixes cached in it.
        passes: of this process; runs the prompts that one process computes alone.
        advanced: called after each layer with how many are done.
        timeline: records when the part computes and exchanges.
        urgency: of the prompt, for `passes`.
        grammars: of the model, for answers that follow one.

    Raises:
        PeerLost: a member of the group or a decode shard is gone.
        Invalid: the model or the spans do not allow the requested method.
    """
    started, before = time.monotonic(), plane.meter.totals()
    computed: list[tuple[int, Tensor, Tensor]] = []
    spans = request.group[request.rank].spans
    prompt = torch.frombuffer(bytearray(request.prompt), dtype=torch.int32).long()
    positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    for peer in itertools.chain(
        *(member.peers for member in request.group),
        *(target.peers for target in request.targets),
        *(source.peers for source in request.prefix),
    ):
        plane.introduce(peer)
    stages = request.group[request.rank].peers
    if model.stage is not None:
        request = of_stage(request, model.stage)

    try:
        async with asyncio.TaskGroup() as deposits:
            async with asyncio.TaskGroup() as sends:
                tp_rank = model.share.rank
                draws = spans[-1].stop == len(prompt)
                number, grammar = request.sampling.answered, request.sampling.grammar
                matching = None
                if draws and grammar and grammars is not None and model.leads:
                    answer = prompt[len(prompt) - number :].tolist()
                    matching = deposits.create_task(grammars.begin(grammar, answer))
                group = Group(model.config, plane, inbox, request, run, sends, tp_rank, timeline)
                attend = attend_by(group)
                targets, share = request.targets, model.share
                whole = Prefix(attend, group, request.prefix, share, pages)
                deposit = Deposit(whole, group, deposits, spans, targets, share, pages)

                async def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                    advanced(layer)
                    return await deposit(layer, q, k, v)

                def attend_here(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                    computed.append((layer, k, v))
                    with group.timeline.during("compute", layer):
                        scale, window = model.config.scale, model.config.window(layer)
                        seen = Seen(q, group.mine, scale, window)
                        seen.attend(k, v, group.mine)
                        return seen.state().out

                rows = _scored_rows(request, positions, len(prompt))
                ids, at, wanted = plane.device.up((prompt[positions], positions, rows))
                is_alone = group.ranks == 1
                if passes is not None and turn is None and (is_alone or request.shares_steps):
                    hidden = await passes.forward(
                        ids,
                        at,
                        attend_layer,
                        group.timeline,
                        wanted,
                        urgency,
                        request.threads,
                        attend_here
                        if is_alone and not request.prefix and not ids.is_cuda
                        else None,
                        request.shares_steps,
                        not is_alone,
                    )
                else:
                    layers = partial(
                        model.forward,
                        positions=at,
                        attend=attend_layer,
                        run=group.compute,
                        turn=turn,
                        selected=wanted,
                    )
                    if model.stage is None:
                        hidden = await layers(ids)
                    else:
                        line = model, plane, inbox, request, stages
                        hidden = await through(*line, ids, len(rows), layers)
                for each in computed:
                    deposit.begin(*each)
                advanced(model.config.layers)
                scores = partial(_scores, model, plane.device, group.compute, turn)
                where, compute = positions[rows], group.compute
                scored = await _score_prompt(request, prompt, where, hidden, scores, compute)
                token = None
                if draws:
                    logits = await scores(hidden[-1:])
                    if logits is not None:
                        matcher = None if matching is None else await matching
                        sampler = Sampler(request.sampling, prompt, matcher)
                        token = await compute(partial(sampler.next, logits[0], number))
                part = b""
                if model.leads:
                    pooling = request.sampling.pooling
                    part = await pooled(pooling, hidden, draws, plane.device, compute)
            took_s = time.monotonic() - started
            here = {peer.name for peer in stages}
            came = tuple(
                Received(peer, *took)
                for peer, took in plane.meter.since(before).items()
                if peer not in here
            )
            prefilled(Prefilled(token, scored, took_s, exchanged(group, attend), part, came))
    except BaseExceptionGroup as failures:
        raise root_cause(failures) from failures
    return Deposited(deposit.sent_bytes, deposit.saved_bytes)


def exchanged(group: Group, attend: Attention) -> Exchanged:
    """Bytes, seconds and blocks of a rank's exchange, once its sends have ended."""
    blocks, kept, lost = attend.selected() if isinstance(attend, Csa) else (0, 0, ())
    timeline = group.timeline
    return Exchanged(
        {str(purpose): nbytes for purpose, nbytes in group.sent.items()},
        timeline.compute_s(),
        timeline.attention_s(),
        timeline.exchange_s(),
        timeline.hidden_s(),
        blocks,
        kept,
        lost,
        group.saved_bytes,
    )


def _scored_rows(request: Prefill, positions: Tensor, tokens: int) -> Tensor:
    """The rows that are needed: the prompt's last, or all for log-probabilities or a mean."""
    sampling = request.sampling
    every = sampling.prompt_logprobs is not None or sampling.pooling == "mean"
    return ((positions == tokens - 1) | every).nonzero()[:, 0]


async def _scores(
    model: Llama, device: Device, run: Run, turn: Turn | None, hidden: Tensor
) -> Tensor | None:
    """`Llama.scores`, on the host."""
    logits = await model.scores(hidden, run, turn)
    return None if logits is None else (await device.down((logits,)))[0]


async def _score_prompt(
    request: Prefill,
    prompt: Tensor,
    positions: Tensor,
    hidden: Tensor,
    scores: Callable[[Tensor], Awaitable[Tensor | None]],
    run: Run,
) -> tuple[tuple[int, TokenLogprobs], ...]:
    """Log-probabilities of the prompt's tokens that follow this rank's positions."""
    alternatives = request.sampling.prompt_logprobs
    if alternatives is None:
        return ()
    scored: list[tuple[int, TokenLogprobs]] = []
    rows = (positions < len(prompt) - 1).nonzero()[:, 0]
    for first in range(0, len(rows), LOGITS_ROWS):
        chunk = rows[first : first + LOGITS_ROWS]
        following = positions[chunk] + 1
        logits = await scores(hidden[chunk.to(hidden.device)])
        if logits is not None:
            work = partial(prompt_logprobs, logits, prompt[following], alternatives)
            scored += zip(following.tolist(), await run(work), strict=True)
    return tuple(scored)
