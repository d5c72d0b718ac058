"""Each kernel on a device beside its definition, in float32 on the CPU."""

from collections.abc import Iterator

import gpu_batch_checks
import gpu_row_checks
import torch
from gpu_compare import (
    HEADS,
    KV_HEADS,
    LIMIT,
    Check,
    Shapes,
    definition,
    eight_bits,
    error_of,
    of_state,
    short,
    tensors,
)
from torch import Tensor

from sps2.kernels import Run, State, attention
from sps2.kernels.contracts import BLOCK, Bits
from sps2.kernels.csa_scores import score
from sps2.kernels.gpu import packed
from sps2.kernels.gpu.kv_quantize import pack_all_on_device
from sps2.kernels.kv_quantize import blocks_of, pack, unpack


def run(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    """The checks of the kernels that serve tensors on `device`, for some shapes."""
    yield from _attention(device, shapes)
    yield from gpu_batch_checks.run(device, shapes)
    yield from _csa(device, shapes)
    yield from gpu_row_checks.run(device, shapes)


def _attention(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    queries, keys = [Run(0, 0, 300), Run(300, 900, 233)], [Run(400, 0, 600), Run(0, 600, 400)]
    at = torch.cat([torch.arange(run.start, run.start + run.tokens) for run in queries])
    order = torch.cat([torch.arange(run.slot, run.slot + run.tokens) for run in keys])
    for dim, dtype in shapes:
        limit = LIMIT[dtype]
        for window in (None, 170):
            q, k, v = tensors(533, 1000, dim, dtype, device)
            state = None
            for part in ([keys[0]], [keys[1]]):
                state = attention(q, k, v, queries=queries, keys=part, window=window, state=state)
            assert state is not None
            places = torch.arange(1000)
            want = definition(q, k[order], v[order], at, places, window)
            yield f"attention {dim} {short(dtype)} {window}", of_state(state, want), limit
    q, k, v = tensors(533, 1000, 128, torch.bfloat16, device)
    k, v, scales, (whole_k, whole_v) = eight_bits(k[:1000], v[:1000])
    got = attention(q, k, v, queries=queries, keys=keys, scales=scales)
    want = definition(q, whole_k[order], whole_v[order], at, torch.arange(1000))
    yield "attention 128 int8", of_state(got, want), 2e-2


def _csa(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    for dim, dtype in shapes:
        limit = LIMIT[dtype]
        q, k, v = tensors(200, 1000, dim, dtype, device)
        k, v = k[:1000], v[:1000]
        at = torch.randint(0, 1000, (200,))
        scores = score(q, k, dim**-0.5, at.to(device))
        exact = definition(q, k, v, at, torch.arange(1000))
        yield f"csa scores {dim} {short(dtype)}", error_of(scores.lse, exact.lse), limit
        bits: Bits
        for bits in (8, 4):
            which = (torch.rand(KV_HEADS, -(-1000 // BLOCK)) < 0.6).to(device)
            made = pack(k, v, which, bits)
            back_k, back_v = unpack(made, torch.float32)
            loss = 0.02 if bits == 8 else 0.2
            yield (
                f"packed {dim} {short(dtype)} {bits}",
                error_of(back_v, blocks_of(v)[which]),
                loss,
            )
            room, ends = pack_all_on_device(k, v, which, bits)
            offsets = torch.cat((ends.new_zeros(1), ends.view(KV_HEADS, -1)[:, -1]))
            got = packed.attend(q, room, offsets, dim**-0.5)
            want = _to_blocks(q, back_k, back_v, which.sum(1).tolist())
            yield (
                f"attention to packed {dim} {short(dtype)} {bits}",
                of_state(got, want),
                limit,
            )


def _to_blocks(q: Tensor, k: Tensor, v: Tensor, counts: list[int]) -> State:
    group = HEADS // KV_HEADS
    states = []
    for head, (ks, vs) in enumerate(zip(k.split(counts), v.split(counts), strict=True)):
        mine = q[:, head * group : (head + 1) * group]
        keys, values = (x.flatten(0, 1)[:, None] for x in (ks, vs))
        at, places = torch.zeros(len(q)), torch.zeros(len(keys))
        states.append(definition(mine, keys, values, at, places))
    return State(*(torch.cat(each, 1) for each in zip(*states, strict=True)))
