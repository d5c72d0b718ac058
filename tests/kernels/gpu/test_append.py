"""Keys and values get into pages on a GPU as they do on a CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels.append import append as on_cpu
from sps2.kernels.gpu.append import append

from .close import DTYPES, near


@given(
    rows=st.integers(0, 5),
    heads=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    dtype=st.sampled_from(DTYPES),
    eight_bits=st.booleans(),
    turned=st.booleans(),
    size=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_it_puts_what_the_cpu_puts(
    rows: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    eight_bits: bool,
    turned: bool,
    size: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(rows, 2 * heads, dim) * size).to(dtype)
    angles = torch.randn(rows, 1, dim)
    table = (angles.cos().to(dtype), angles.sin().to(dtype)) if turned else None
    slots = torch.randperm(12)[:rows]
    made = []
    for put in (append, on_cpu):
        kind = torch.int8 if eight_bits else dtype
        k_pool, v_pool = torch.full((2, heads, 12, dim), 7, dtype=kind).transpose(1, 2)
        by = torch.full((2, heads, 12), 7.0).transpose(1, 2)
        scales = (by[0], by[1]) if eight_bits else None
        put(x[:, :heads], x[:, heads:], k_pool, v_pool, slots, scales, table)
        made.append((k_pool, v_pool, by))
    (k, v, found), (wanted_k, wanted_v, wanted) = made
    near(found, wanted, dtype)
    if eight_bits:  # a number in the middle between two may go either way
        most = 0 if dtype == torch.float32 else 2
        assert int((v.int() - wanted_v.int()).abs().max()) <= most
        assert int((k.int() - wanted_k.int()).abs().max()) <= max(1, most)
    else:
        near(k, wanted_k, dtype, size)
        assert torch.equal(v, wanted_v)


def test_bad_input_is_named() -> None:
    x, pool, slots = torch.zeros(3, 2, 64), torch.zeros(9, 2, 64), torch.arange(3)
    scales = torch.zeros(9, 2), torch.zeros(9, 2)
    for named, arguments in (
        ("v has shape", (x, x[:2], pool, pool, slots)),
        ("k_pool has shape", (x, x, pool[:, :1], pool, slots)),
        ("k_pool is float32, not int8", (x, x, pool, pool, slots, scales)),
        ("v_pool is bfloat16", (x, x, pool, pool.bfloat16(), slots)),
        ("slots has shape", (x, x, pool, pool, slots[:2])),
        ("slots is float32", (x, x, pool, pool, slots.float())),
        (r"table\[1\] has shape", (x, x, pool, pool, slots, None, (x[:, :1], x[:2, :1]))),
        (r"scales\[0\] is int8", (x, x, pool.char(), pool.char(), slots, (scales[0].char(),) * 2)),
    ):
        with pytest.raises(ValueError, match=named):
            append(*arguments)
