"""One rank's share of a prompt: all layers on its spans, and the first token if it is the last."""

import asyncio
import time

import torch

from sps2.common.messages import Prefill, Prefilled, TokenLogprobs
from sps2.common.model.attend import Run
from sps2.common.model.llama import Llama
from sps2.common.model.sample import Sampler, prompt_logprobs
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.services.prefill.deposit import Deposit
from sps2.services.prefill.ring import RingAttention
from sps2.services.tasks import root_cause

LOGITS_ROWS = 256
"""Rows of prompt log-probabilities computed at once: bounds the memory of their logits."""


async def run_prompt(
    model: Llama, plane: Plane, inbox: Inbox, request: Prefill, run: Run
) -> Prefilled:
    """Run `request.rank`'s part; returns once its keys and values have left.

    Args:
        inbox: of this request, open at every member before any of them begins.

    Raises:
        PeerLost: a member of the group or a decode shard is gone.
    """
    started = time.monotonic()
    spans = request.group[request.rank].spans
    prompt = torch.frombuffer(bytearray(request.prompt), dtype=torch.int32).long()
    positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    for peer in (*(member.peer for member in request.group), *(to.peer for to in request.targets)):
        plane.introduce(peer)

    key = (request.request, request.epoch)
    try:
        async with asyncio.TaskGroup() as sends:
            deposit = Deposit(plane, sends, key, spans, request.targets)
            ring = RingAttention(
                model.config,
                plane,
                inbox,
                key,
                [member.peer.name for member in request.group],
                [member.spans for member in request.group],
                request.rank,
                deposit,
                run,
            )
            hidden = await model.forward(prompt[positions], positions, ring, run)
            scored = await _score_prompt(model, request, prompt, positions, hidden, run)
            token = None
            if spans[-1].stop == len(prompt):
                sampler = Sampler(request.sampling, prompt)
                token = await run(lambda: sampler.next(model.logits(hidden[-1:])[0], 0))
            compute_s = time.monotonic() - started
    except BaseExceptionGroup as failures:
        raise root_cause(failures) from failures
    return Prefilled(token, scored, ring.sent_bytes, deposit.sent_bytes, compute_s)


async def _score_prompt(
    model: Llama,
    request: Prefill,
    prompt: torch.Tensor,
    positions: torch.Tensor,
    hidden: torch.Tensor,
    run: Run,
) -> tuple[tuple[int, TokenLogprobs], ...]:
    """Log-probabilities of the prompt's tokens that follow this rank's positions."""
    alternatives = request.sampling.prompt_logprobs
    if alternatives is None:
        return ()
    scored: list[tuple[int, TokenLogprobs]] = []
    rows = (positions < len(prompt) - 1).nonzero()[:, 0]
    for chunk in rows.split(LOGITS_ROWS):
        following = positions[chunk] + 1

        def score(chunk: torch.Tensor = chunk, following: torch.Tensor = following):  # type: ignore[no-untyped-def]
            return prompt_logprobs(model.logits(hidden[chunk]), prompt[following], alternatives)

        scored += zip(following.tolist(), await run(score), strict=True)
    return tuple(scored)
