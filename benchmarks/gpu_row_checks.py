"""What lies between products, and merges, on a device beside their definitions."""

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from gpu_compare import LIMIT, Check, Shapes, error_of, of_state, short

from sps2.kernels import State, merge_many
from sps2.kernels.append import append
from sps2.kernels.contracts import Choices
from sps2.kernels.rows import add_norm, rotate, swiglu
from sps2.kernels.sample import sample


def run(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    yield from _rows(device, {dtype for _, dtype in shapes})
    yield from _append(device, shapes)
    if (128, torch.bfloat16) in shapes:
        yield from _sample(device)


def _rows(device: torch.device, dtypes: Collection[torch.dtype]) -> Iterator[Check]:
    for dtype in dtypes:
        limit = LIMIT[dtype]
        gate, up = torch.randn(100, 2 * 1408).to(dtype).to(device).chunk(2, -1)
        want = F.silu(gate.float()) * up.float()
        yield f"swiglu {short(dtype)}", error_of(swiglu(gate, up), want), limit
        x, plus = torch.randn(2, 100, 4096).to(dtype).to(device)
        weight, whole = torch.randn(4096).to(dtype).to(device), (x + plus).float()
        want = F.rms_norm(whole, (4096,), weight.float(), 1e-5)
        got = add_norm(x, plus, weight, 1e-5)
        yield f"add_norm {short(dtype)}", max(error_of(got, want), error_of(x, whole)), limit
        x = torch.randn(100, 5, 80).to(dtype).to(device)
        cosines, sines = torch.randn(2, 100, 1, 80).to(dtype).to(device)
        want = x.float() * cosines.float() + x.float().roll(40, -1) * sines.float()
        yield f"rotate {short(dtype)}", error_of(rotate(x, (cosines, sines)), want), limit

        outs, lses = torch.randn(3, 50, 4, 128).to(dtype).to(device), torch.randn(3, 50, 4) * 9
        lses[1, 3:9] = -torch.inf
        lses = lses.to(device)
        got_state = merge_many([State(*each) for each in zip(outs, lses, strict=True)])
        mixed = (outs.float() * lses.softmax(0)[..., None]).sum(0)
        merged = State(mixed, lses.logsumexp(0))
        yield f"merge {short(dtype)}", of_state(got_state, merged), 1e-5


def _append(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    slots = torch.randperm(900)[:200]
    for dim, dtype in shapes:
        limit = LIMIT[dtype]
        k, v = torch.randn(2, 200, 8, dim).to(dtype)
        cosines, sines = torch.randn(2, 200, 1, dim).to(dtype)
        turned = k.float() * cosines.float() + k.float().roll(dim // 2, -1) * sines.float()
        for eight in (False, True):
            kind = torch.int8 if eight else dtype
            pool = torch.zeros(2, 8, 900, dim, dtype=kind, device=device).transpose(1, 2)
            by = torch.zeros(2, 8, 900, device=device).transpose(1, 2)
            scales = (by[0], by[1]) if eight else None
            table = cosines.to(device), sines.to(device)
            append(
                *(k.to(device), v.to(device), pool[0], pool[1], slots.to(device)),
                *(scales, table),
            )
            got = pool.float() * by[..., None] if eight else pool
            error = max(
                error_of(side[slots.to(device)], want)
                for side, want in zip(got, (turned, v), strict=True)
            )
            yield f"append {dim} {short(kind)} of {short(dtype)}", error, limit + 0.01 * eight


def _sample(device: torch.device) -> Iterator[Check]:
    """The share of tokens that are not those of the CPU; of nearly equal ones either may win."""
    rows = 64
    logits = torch.randn(rows, 128256) * 3
    for name, temperature, min_p, top_k, top_p in (
        ("greedy", 0.0, 0.0, 0, 1.0),
        ("all", 1.0, 0.0, 0, 1.0),
        ("min_p", 1.0, 0.05, 0, 1.0),
        ("top_k", 0.7, 0.0, 50, 1.0),
        ("top_p", 0.7, 0.0, 0, 0.9),
        ("every", 1.3, 0.01, 500, 0.95),
    ):
        choices = Choices(
            torch.full((rows,), temperature),
            torch.full((rows,), min_p),
            torch.full((rows,), top_k, dtype=torch.int32),
            torch.full((rows,), top_p),
            torch.rand(rows, dtype=torch.float64),
        )
        got = sample(logits.to(device), Choices(*(each.to(device) for each in choices)))
        unlike = (got.cpu() != sample(logits, choices)).float().mean()
        yield f"sample {name}", float(unlike), 0.05
