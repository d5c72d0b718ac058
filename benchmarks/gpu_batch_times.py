"""How fast the GPU takes batches: shared prefixes, the next tokens."""

from collections.abc import Iterator

import torch
from gpu_stages import Stage
from gpu_timing import DIM, HEADS, KV_HEADS, Row, milliseconds, random

from sps2.kernels import PagedRows, Run, paged_attention
from sps2.kernels.append import append
from sps2.kernels.contracts import Choices
from sps2.kernels.kv_quantize import quantise_rows
from sps2.kernels.rows import rotate
from sps2.kernels.sample import sample, truncate

PREFIX, OWN = 8 << 10, 512
BATCHES = (4, 16, 64)
VOCAB = 128256


def stages(device: torch.device) -> list[Stage]:
    """Shared prefixes, and what lies between products."""

    def small() -> Iterator[Row]:
        yield drawn(1, device)
        yield drawn(64, device)
        yield appended(64, device)

    title = f"Decode behind {PREFIX} keys in common, {OWN} of their own, us per layer"
    return [
        Stage("relay", title, lambda: (relay(batch, device) for batch in BATCHES)),
        Stage("small", "Small operations, us", small),
    ]


def relay(batch: int, device: torch.device) -> Row:
    """One layer's attention where the prefix lies in one place, and where each row has its own."""
    each = PREFIX + OWN
    k, v = random(2, KV_HEADS, batch * each, DIM, device=device).transpose(1, 2)
    q = random(batch, HEADS, DIM, device=device)
    at = [each - 1] * batch
    apart = PagedRows([[Run(row * each, 0, each)] for row in range(batch)], at)
    own = [Run(row * each + PREFIX, PREFIX, OWN) for row in range(batch)]
    shared = PagedRows([[Run(0, 0, PREFIX), mine] for mine in own], at)
    one_by_one = milliseconds(lambda: paged_attention(q, k, v, apart))
    together = milliseconds(lambda: paged_attention(q, k, v, shared))
    return {
        "rows": batch,
        "one by one": round(one_by_one * 1e3, 1),
        "together": round(together * 1e3, 1),
        "ratio": round(one_by_one / together, 2),
        "ratio of keys read": round(shared.keys / shared.keys_read, 2),
    }


def drawn(rows: int, device: torch.device) -> Row:
    """Tokens by top_k and top_p, beside sorting row by row in torch."""
    logits = torch.randn(rows, VOCAB, device=device) * 3
    choices = Choices(
        torch.full((rows,), 0.7, device=device),
        torch.full((rows,), 0.01, device=device),
        torch.full((rows,), 50, dtype=torch.int32, device=device),
        torch.full((rows,), 0.9, device=device),
        torch.rand(rows, dtype=torch.float64, device=device),
    )

    def sorting() -> None:
        for row in logits:
            truncate(row / 0.7, 0.01, 50, 0.9).softmax(-1).multinomial(1)

    ours, theirs = milliseconds(lambda: sample(logits, choices)), milliseconds(sorting)
    return _beside(f"sample {rows} rows of {VOCAB}", ours, theirs)


def appended(rows: int, device: torch.device) -> Row:
    """Keys turned and put into pages of 8 bits, beside torch operations after `rotate`."""
    k, v = random(2, rows, KV_HEADS, DIM, device=device)
    table = tuple(random(2, rows, 1, DIM, device=device))
    pools = torch.zeros(2, KV_HEADS, 1 << 16, DIM, dtype=torch.int8, device=device).transpose(1, 2)
    by = torch.zeros(2, KV_HEADS, 1 << 16, device=device).transpose(1, 2)
    slots = torch.randperm(1 << 16, device=device)[:rows]
    sides, scales = (table[0], table[1]), (by[0], by[1])

    def apart() -> None:
        for x, pool, scale in zip((rotate(k, sides), v), pools, by, strict=True):
            pool[slots], scale[slots] = quantise_rows(x, torch.float32)

    ours = milliseconds(lambda: append(k, v, pools[0], pools[1], slots, scales, sides))
    return _beside(f"append {rows} rows in 8 bits", ours, milliseconds(apart))


def _beside(what: str, ours: float, theirs: float) -> Row:
    return {
        "what": what,
        "sps2": round(ours * 1e3, 1),
        "torch": round(theirs * 1e3, 1),
        "ratio": round(theirs / ours, 2),
    }
