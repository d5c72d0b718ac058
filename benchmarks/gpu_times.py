"""How fast the large GPU kernels are, beside torch's own and beside the device's bandwidth."""

from collections.abc import Iterator
from functools import partial

import torch
from gpu_stages import Stage
from gpu_timing import DIM, DTYPE, HEADS, KV_HEADS, Row, milliseconds, random
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sps2.kernels import PagedRows, Run, attention, paged_attention
from sps2.kernels.contracts import BLOCK
from sps2.kernels.csa_scores import Scores, choose_probes, importance, score
from sps2.kernels.gpu import flash, packed
from sps2.kernels.gpu.kv_quantize import pack_all_on_device

LENGTHS = (8 << 10, 32 << 10, 128 << 10)
BATCHES = (1, 16, 64)
FEW = (1, 32, 256)
CONTEXT = 32 << 10
KEPT = (0.1, 0.2, 0.4)
PROMPT, RANKS = 128 << 10, 4
PROBES, SUFFIX = 4, 64
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def stages(device: torch.device) -> list[Stage]:
    """Attention of prompts and of decoding, then CSA."""

    def decoding() -> Iterator[Row]:
        bandwidth = copy_bandwidth(device)
        yield from (decode(batch, bandwidth, device) for batch in BATCHES)

    return [
        Stage("prefill", "Prefill, TFLOP/s", lambda: (prefill(n, device) for n in LENGTHS)),
        Stage("few", "Few new tokens behind many keys, us per layer", lambda: _few(device)),
        Stage("decode", f"Decode at {CONTEXT} keys each", decoding),
        Stage("csa", f"CSA, the last of {RANKS} ranks at {PROMPT} tokens, ms", lambda: csa(device)),
    ]


def _few(device: torch.device) -> Iterator[Row]:
    """The next turn of a conversation, whose keys are split, and not split."""
    k, v = random(2, KV_HEADS, PROMPT, DIM, device=device).transpose(1, 2)
    for tokens in FEW:
        q = random(tokens, HEADS, DIM, device=device)
        part = [Run(0, PROMPT - tokens, tokens)], [Run(0, 0, PROMPT)]
        usual = partial(flash.attend, q, k, v, [part], DIM**-0.5)
        took = {"split": milliseconds(usual), "whole": milliseconds(partial(usual, pieces=1))}
        us = {name: round(each * 1e3, 1) for name, each in took.items()}
        yield {"tokens": tokens, **us, "ratio": round(took["whole"] / took["split"], 2)}


def prefill(tokens: int, device: torch.device) -> Row:
    """Causal attention of a prompt to itself."""
    q = random(HEADS, tokens, DIM, device=device)
    k, v = random(2, KV_HEADS, tokens, DIM, device=device)
    runs = [Run(0, 0, tokens)]
    views = [x.transpose(0, 1) for x in (q, k, v)]
    ours = milliseconds(lambda: attention(*views, queries=runs, keys=runs))
    theirs = {name: _torchs(q, k, v, backend) for name, backend in BACKENDS.items()}
    work = 2 * tokens * (tokens + 1) * HEADS * DIM / 1e9
    best = min((each for each in theirs.values() if each), default=None)
    return {
        "tokens": tokens,
        "sps2": round(work / ours, 1),
        **{name: each and round(work / each, 1) for name, each in theirs.items()},
        "of the best": best and round(best / ours, 3),
    }


def _torchs(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> float | None:
    """The time of torch's backend, if it can."""

    def work() -> Tensor:
        return scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )

    try:
        with sdpa_kernel([backend]):
            return milliseconds(work)
    except RuntimeError as error:
        print(f"{backend.name} cannot: {str(error).splitlines()[0]}")
        return None


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a plain copy, bytes read and bytes written."""
    a = torch.randint(0, 255, (4 << 30,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / 1e6 / milliseconds(lambda: b.copy_(a))


def decode(batch: int, bandwidth: float, device: torch.device) -> Row:
    """One layer's attention of a step; several pools in rotation, so that caches do not help."""
    slots = batch * CONTEXT
    pools = []
    for _ in range(max(2, 32 // batch)):
        pools.append(random(2, KV_HEADS, slots, DIM, device=device).transpose(1, 2))
    q = random(batch, HEADS, DIM, device=device)
    runs = [[Run(row * CONTEXT, 0, CONTEXT)] for row in range(batch)]
    rows = PagedRows(runs, [CONTEXT - 1] * batch)

    def layers() -> None:
        for k, v in pools:
            paged_attention(q, k, v, rows)

    each = milliseconds(layers) / len(pools)
    read = 2 * KV_HEADS * slots * DIM * DTYPE.itemsize / 1e6 / each
    return {
        "batch": batch,
        "us per layer": round(each * 1e3, 1),
        "GB/s": round(read),
        "of a copy": round(read / bandwidth, 3),
    }


def csa(device: torch.device) -> Iterator[Row]:
    """What a layer costs the last rank and the owners before it, on one device."""
    own = PROMPT // RANKS
    past = PROMPT - own
    q = random(HEADS, own, DIM, device=device).transpose(0, 1)
    k, v = random(2, KV_HEADS, past, DIM, device=device).transpose(1, 2)
    scale = DIM**-0.5
    keys, queries = [Run(0, 0, past)], [Run(0, past, own)]
    dense = milliseconds(lambda: attention(q, k, v, queries=queries, keys=keys))
    probes = choose_probes(own, PROBES, SUFFIX)
    rows = q[probes.rows.to(device)]
    none = torch.zeros(1, dtype=torch.int64, device=device)

    def select(kept: float) -> Tensor:
        scores: Scores = score(rows, k, scale)
        worth = importance(scores.mass(scores.lse), probes.segments)
        chosen = worth.topk(round(kept * worth.shape[1]), 1).indices
        return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, chosen, True)

    def whole(kept: float) -> None:
        made, ends = pack_all_on_device(k, v, select(kept), 8)
        offsets = torch.cat((none, ends.view(KV_HEADS, -1)[:, -1]))
        packed.attend(q, made, offsets, scale)

    for kept in KEPT:
        selecting = milliseconds(lambda kept=kept: select(kept))  # type: ignore[misc]
        ours = milliseconds(lambda kept=kept: whole(kept))  # type: ignore[misc]
        share = round(kept * (past // BLOCK)) / (past // BLOCK)
        yield {
            "kept": kept,
            "dense": round(dense, 2),
            "selection": round(selecting, 2),
            "all": round(ours, 2),
            "of ideal": round(dense * share / ours, 3),
        }
