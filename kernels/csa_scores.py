"""Communication-efficient sparse attention (CSA): which blocks of keys are worth sending.

A consumer sends a few of its query rows (probes). The owner of earlier keys scores them exactly. A
block's importance to a KV head is the share of the probes' attention that it gets: the mean over
the rows of a segment, the maximum over segments, the mean over the heads of the KV head.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels import gpu, native
from sps2.kernels.attention import attention
from sps2.kernels.contracts import BLOCK, Packed
from sps2.kernels.kv_quantize import unpack
from sps2.kernels.state import Run, State, empty_state

SEGMENT = 128
"""Rows of one segment."""
SUFFIX_SEGMENT = 8
"""Rows of one segment among the last rows of a prompt, where the question usually is."""
LEAST = -120.0
"""Smaller exponents of two are raised to this: denormal numbers take ten times as long."""
CACHED = 256 << 10
"""Scores that are computed at a time, so that they stay in the L2 cache."""
HELD_OUT_EVERY = 512
"""One row in this many is a held-out probe, which only measures the lost mass."""


class Probes(NamedTuple):
    """The rows of a consumer that are probed.

    rows: [probes] int64; the held-out ones come last.
    segments: number of rows of each segment, in order.
    held_out: number of held-out rows, which belong to no segment.
    """

    rows: Tensor
    segments: tuple[int, ...]
    held_out: int


def choose_probes(tokens: int, per_segment: int, suffix: int) -> Probes:
    """Choose the probes of a consumer with `tokens` rows.

    Args:
        per_segment: probes of a segment of `SEGMENT` rows.
        suffix: number of last rows that are all probed; 0 unless they end the prompt.
    """
    body = max(0, tokens - suffix)
    stride = max(1, SEGMENT // per_segment)
    rows: list[Tensor] = []
    segments: list[int] = []
    for first in range(0, body, SEGMENT):
        last = min(first + SEGMENT, body)
        rows.append(torch.arange(min(first + stride // 2, last - 1), last, stride))
        segments.append(len(rows[-1]))
    for first in range(body, tokens, SUFFIX_SEGMENT):
        rows.append(torch.arange(first, min(first + SUFFIX_SEGMENT, tokens)))
        segments.append(len(rows[-1]))
    held_out = range(HELD_OUT_EVERY // 2 + stride // 2 + 1, body, HELD_OUT_EVERY)
    rows.append(torch.tensor(held_out, dtype=torch.int64))
    return Probes(torch.cat(rows), tuple(segments), len(held_out))


class Plain(NamedTuple):
    """Unquantised blocks: k, v [blocks, BLOCK, dim]."""

    k: Tensor
    v: Tensor


Blocks = Packed | Plain


class Scores(NamedTuple):
    """Scores of probes against keys: exp(score - peak), summed by block.

    weight: [kv_heads, probes, group, blocks] float32.
    peak: [kv_heads, probes, group] float32, near the largest score.
    """

    weight: Tensor
    peak: Tensor

    @property
    def lse(self) -> Tensor:
        """Log-sum-exp of each row's scores: [probes, heads]."""
        lse = self.weight.sum(-1).log_() + self.peak
        return lse.transpose(0, 1).flatten(1).contiguous()

    def mass(self, lse: Tensor) -> Tensor:
        """Each block's share of the attention of the probes: [kv_heads, probes, group, blocks].

        Args:
            lse: [probes, heads], log-sum-exp over all keys that the probes see.
        """
        kv_heads, probes, group, _ = self.weight.shape
        whole = lse.view(probes, kv_heads, group).transpose(0, 1)
        return self.weight * (self.peak - whole).exp_()[..., None]


def score(q: Tensor, k: Tensor, scale: float, positions: Tensor | None = None) -> Scores:
    """Score probes against keys.

    Args:
        q: [probes, heads, dim].
        k: [tokens, kv_heads, dim].
        positions: row of k of each probe, if these are the consumer's own keys; a probe sees keys
            up to its own. None: all keys are visible.
    """
    probes, heads, _ = q.shape
    tokens, kv_heads, _ = k.shape
    group = heads // kv_heads
    if gpu.serves(q):
        from sps2.kernels.gpu import csa_scores

        weight, peak = csa_scores.score(q, k, scale, positions)
    elif probes and tokens and scale > 0 and native.serves(q, k):
        at = torch.full((probes,), tokens) if positions is None else positions
        weight, peak = native.score(q, k, at.int(), [Run(0, 0, tokens)], scale)
    else:
        weight, peak = _score(q, k, scale, positions)
    shape = (kv_heads, probes, group)
    return Scores(weight.view(*shape, weight.shape[-1]), peak.view(shape))


def attend_blocks(
    q: Tensor, blocks: Sequence[Blocks], scale: float, state: State | None = None
) -> State:
    """Attention of every query to all tokens of the blocks of one KV head.

    On GPUs packed blocks are unpacked tile by tile, never in memory.

    Args:
        q: [n, group, dim], the heads of that KV head.
        state: of the same queries over other keys; it is updated in place, and returned.
    """
    keys, values = [], []
    for each in blocks:
        if isinstance(each, Packed) and gpu.serves(q):
            from sps2.kernels.gpu import packed

            offsets = gpu.upload(torch.tensor([0, len(each.k)]), q.device)
            state = packed.attend(q, each, offsets, scale, state)
            continue
        k, v = unpack(each, q.dtype) if isinstance(each, Packed) else each
        keys.append(k.flatten(0, 1))
        values.append(v.flatten(0, 1))
    if keys:
        k, v = torch.cat(keys)[:, None], torch.cat(values)[:, None]
        queries, seen = [Run(0, 0, len(q))], [Run(0, -len(k), len(k))]
        state = attention(q, k, v, queries=queries, keys=seen, scale=scale, state=state)
    n, group, dim = q.shape
    return empty_state(n, group, dim, q.device) if state is None else state


def _score(q: Tensor, k: Tensor, scale: float, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """`score` in torch operations: weight [kv_heads, rows, blocks], peak [kv_heads, rows].

    Rows are probes * group.
    """
    probes, heads, dim = q.shape
    tokens, kv_heads, _ = k.shape
    group = heads // kv_heads
    rows = q.view(probes, kv_heads, group, dim).permute(1, 0, 2, 3).reshape(kv_heads, -1, dim)
    keys = k.permute(1, 2, 0).to(rows.dtype)
    seen = None if positions is None else positions.repeat_interleave(group)[:, None]
    blocks = -(-tokens // BLOCK)
    summed = torch.empty(kv_heads, probes * group, blocks)
    peak = torch.empty(kv_heads, probes * group)
    order = torch.arange(tokens)
    size = max(1, CACHED // max(1, tokens))
    padded = torch.zeros(size, blocks * BLOCK)
    for head in range(kv_heads):
        for first in range(0, probes * group, size):
            part = slice(first, min(first + size, probes * group))
            scores = padded[: part.stop - first, :tokens]
            scores.copy_(rows[head, part] @ keys[head])
            if seen is not None:
                scores.masked_fill_(order > seen[part], -torch.inf)
            top = scores.amax(-1, keepdim=True)
            scores.sub_(top).mul_(scale * math.log2(math.e)).clamp_(min=LEAST).exp2_()
            peak[head, part] = top[:, 0] * scale
            torch.sum(padded[: len(top)].unflatten(-1, (-1, BLOCK)), -1, out=summed[head, part])
    return summed, peak


def importance(mass: Tensor, segments: Sequence[int]) -> Tensor:
    """Importance of blocks [kv_heads, blocks], from masses [kv_heads, probes, group, blocks].

    Held-out probes do not count.
    """
    judged = mass[:, : sum(segments)].split(list(segments), 1)
    means = torch.stack([segment.mean(1) for segment in judged])
    return means.amax(0).mean(1)


def lost(mass: Tensor, kept: Tensor, held_out: int) -> Tensor:
    """Lost mass [kv_heads]: the mean mass of dropped blocks in held-out probes.

    Args:
        kept: [kv_heads, blocks] bool.
    """
    if not held_out:
        return mass.new_zeros(len(mass))
    dropped = mass[:, -held_out:].masked_fill(kept[:, None, None], 0)
    return dropped.sum(-1).mean((1, 2))
