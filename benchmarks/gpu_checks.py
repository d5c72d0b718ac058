"""Each kernel on a device beside its definition, in float32 on the CPU."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sps2.kernels import PagedRows, Run, Scales, State, attention, merge_many, paged_attention
from sps2.kernels.csa import score
from sps2.kernels.gpu import packed
from sps2.kernels.gpu.quantize import pack_all_on_device
from sps2.kernels.quantize import BLOCK, Bits, blocks_of, pack, quantise_rows, restore_rows, unpack
from sps2.kernels.reference import reference_attention
from sps2.kernels.rows import add_norm, rotate, swiglu

Check = tuple[str, float, float]
"""What, its error relative to the whole, and the limit."""
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HEADS, KV_HEADS = 8, 2


def run(device: torch.device) -> Iterator[Check]:
    """All checks of the kernels that serve tensors on `device`."""
    yield from _attention(device)
    yield from _decode(device)
    yield from _csa(device)
    yield from _rows(device)


def _error(got: Tensor, want: Tensor) -> float:
    """Relative, by norms; infinite where they differ in what is infinite, or got NaN."""
    got, want = got.cpu().double(), want.cpu().double()
    if not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    difference = (got - want).nan_to_num(0, 0, 0).norm()
    return float(difference / want.nan_to_num(0, 0, 0).norm().clamp(min=1e-6))


def _of_state(got: State, want: State) -> float:
    return max(_error(got.out, want.out), _error(got.lse, want.lse))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors(
    n: int, m: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """k and v end in rows that nobody may read."""
    q = torch.randn(n, HEADS, dim).to(dtype)
    pool = torch.randn(2, KV_HEADS, m + 100, dim).to(dtype)
    pool[:, :, m:] = torch.nan
    k, v = pool.to(device).transpose(1, 2)
    return q.to(device), k, v


def _definition(
    q: Tensor, k: Tensor, v: Tensor, at: Tensor, places: Tensor, window: int | None = None
) -> State:
    return reference_attention(q.cpu(), k.cpu(), v.cpu(), at, places, window=window)


def _attention(device: torch.device) -> Iterator[Check]:
    queries, keys = [Run(0, 0, 300), Run(300, 900, 233)], [Run(400, 0, 600), Run(0, 600, 400)]
    at = torch.cat([torch.arange(run.start, run.start + run.tokens) for run in queries])
    order = torch.cat([torch.arange(run.slot, run.slot + run.tokens) for run in keys])
    for dim in (64, 80, 96, 128, 256):
        for dtype, limit in LIMIT.items():
            for window in (None, 170):
                q, k, v = _tensors(533, 1000, dim, dtype, device)
                state = None
                for part in ([keys[0]], [keys[1]]):
                    state = attention(
                        q, k, v, queries=queries, keys=part, window=window, state=state
                    )
                assert state is not None
                places = torch.arange(1000)
                want = _definition(q, k[order], v[order], at, places, window)
                yield f"attention {dim} {_short(dtype)} {window}", _of_state(state, want), limit
    q, k, v = _tensors(533, 1000, 128, torch.bfloat16, device)
    k, v, scales, (whole_k, whole_v) = _eight_bits(k[:1000], v[:1000])
    got = attention(q, k, v, queries=queries, keys=keys, scales=scales)
    want = _definition(q, whole_k[order], whole_v[order], at, torch.arange(1000))
    yield "attention 128 int8", _of_state(got, want), 2e-2


def _eight_bits(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Scales, tuple[Tensor, Tensor]]:
    (k, k_scale), (v, v_scale) = (quantise_rows(x, torch.float32) for x in (k, v))
    whole = restore_rows(k, k_scale, torch.float32), restore_rows(v, v_scale, torch.float32)
    by_head = k_scale.T.contiguous().T, v_scale.T.contiguous().T
    return k, v, by_head, whole


def _decode(device: torch.device) -> Iterator[Check]:
    lengths = [3000, 0, 1, 700]
    for page in (16, 64):
        for dim in (64, 80, 128, 256):
            for dtype in (*LIMIT, torch.int8):
                compute = torch.bfloat16 if dtype == torch.int8 else dtype
                pages = [-(-length // page) for length in lengths]
                order = torch.randperm(sum(pages)).tolist()
                q, k, v = _tensors(len(lengths), sum(pages) * page, dim, compute, device)
                scales, whole = None, (k, v)
                if dtype == torch.int8:
                    k, v, scales, whole = _eight_bits(k, v)
                runs = [
                    [
                        Run(order.pop() * page, number * page, min(page, length - number * page))
                        for number in range(count)
                    ]
                    for count, length in zip(pages, lengths, strict=True)
                ]
                rows = PagedRows(runs, [length - 1 for length in lengths])
                got = paged_attention(q, k, v, rows, scales=scales)
                wanted = [
                    _decoded(q[row : row + 1], whole, own, length)
                    for row, (own, length) in enumerate(zip(runs, lengths, strict=True))
                ]
                want = State(*(torch.cat(each) for each in zip(*wanted, strict=True)))
                name = f"decode {dim} {_short(dtype)} pages of {page}"
                yield name, _of_state(got, want), LIMIT[compute]


def _decoded(q: Tensor, whole: tuple[Tensor, Tensor], own: list[Run], length: int) -> State:
    slots = torch.tensor([run.slot + at for run in own for at in range(run.tokens)]).long()
    if not length:
        return State(torch.zeros(q.shape), torch.full(q.shape[:2], -torch.inf))
    at = torch.tensor([length - 1])
    return _definition(q, whole[0][slots], whole[1][slots], at, torch.arange(length))


def _csa(device: torch.device) -> Iterator[Check]:
    for dim in (64, 80, 128, 256):
        for dtype, limit in LIMIT.items():
            q, k, v = _tensors(200, 1000, dim, dtype, device)
            k, v = k[:1000], v[:1000]
            at = torch.randint(0, 1000, (200,))
            scores = score(q, k, dim**-0.5, at.to(device))
            exact = _definition(q, k, v, at, torch.arange(1000))
            yield f"csa scores {dim} {_short(dtype)}", _error(scores.lse, exact.lse), limit
            bits: Bits
            for bits in (8, 4):
                which = (torch.rand(KV_HEADS, -(-1000 // BLOCK)) < 0.6).to(device)
                made = pack(k, v, which, bits)
                back_k, back_v = unpack(made, torch.float32)
                loss = 0.02 if bits == 8 else 0.2
                yield (
                    f"packed {dim} {_short(dtype)} {bits}",
                    _error(back_v, blocks_of(v)[which]),
                    loss,
                )
                room, ends = pack_all_on_device(k, v, which, bits)
                offsets = torch.cat((ends.new_zeros(1), ends.view(KV_HEADS, -1)[:, -1]))
                got = packed.attend(q, room, offsets, dim**-0.5)
                want = _to_blocks(q, back_k, back_v, which.sum(1).tolist())
                yield (
                    f"attention to packed {dim} {_short(dtype)} {bits}",
                    _of_state(got, want),
                    limit,
                )


def _to_blocks(q: Tensor, k: Tensor, v: Tensor, counts: list[int]) -> State:
    group = HEADS // KV_HEADS
    states = []
    for head, (ks, vs) in enumerate(zip(k.split(counts), v.split(counts), strict=True)):
        mine = q[:, head * group : (head + 1) * group]
        keys, values = (x.flatten(0, 1)[:, None] for x in (ks, vs))
        at, places = torch.zeros(len(q)), torch.zeros(len(keys))
        states.append(_definition(mine, keys, values, at, places))
    return State(*(torch.cat(each, 1) for each in zip(*states, strict=True)))


def _rows(device: torch.device) -> Iterator[Check]:
    for dtype, limit in LIMIT.items():
        gate, up = torch.randn(100, 2 * 1408).to(dtype).to(device).chunk(2, -1)
        want = F.silu(gate.float()) * up.float()
        yield f"swiglu {_short(dtype)}", _error(swiglu(gate, up), want), limit
        x, plus = torch.randn(2, 100, 4096).to(dtype).to(device)
        weight, whole = torch.randn(4096).to(dtype).to(device), (x + plus).float()
        want = F.rms_norm(whole, (4096,), weight.float(), 1e-5)
        got = add_norm(x, plus, weight, 1e-5)
        yield f"add_norm {_short(dtype)}", max(_error(got, want), _error(x, whole)), limit
        x = torch.randn(100, 5, 80).to(dtype).to(device)
        cosines, sines = torch.randn(2, 100, 1, 80).to(dtype).to(device)
        want = x.float() * cosines.float() + x.float().roll(40, -1) * sines.float()
        yield f"rotate {_short(dtype)}", _error(rotate(x, (cosines, sines)), want), limit

        outs, lses = torch.randn(3, 50, 4, 128).to(dtype).to(device), torch.randn(3, 50, 4) * 9
        lses[1, 3:9] = -torch.inf
        lses = lses.to(device)
        got_state = merge_many([State(*each) for each in zip(outs, lses, strict=True)])
        mixed = (outs.float() * lses.softmax(0)[..., None]).sum(0)
        merged = State(mixed, lses.logsumexp(0))
        yield f"merge {_short(dtype)}", _of_state(got_state, merged), 1e-5
