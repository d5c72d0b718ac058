"""Prompts and decoding in one launch get what each gets alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels import PagedRows, Run, State, empty_state
from sps2.kernels.gpu import pod
from sps2.kernels.reference import reference_attention

from .batch import batch_of, defined, pool_of
from .close import DTYPES, near_state


@given(
    prompts=st.lists(st.integers(0, 70), max_size=2),
    cached=st.integers(0, 70),
    lengths=st.lists(st.integers(0, 150), max_size=3),
    common=st.sampled_from([0, 2]),
    page=st.sampled_from([16, 64]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    window=st.one_of(st.none(), st.integers(1, 60)),
    dtype=st.sampled_from([*DTYPES, torch.int8]),
    held=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_both_kinds_get_what_they_get_alone(
    prompts: list[int],
    cached: int,
    lengths: list[int],
    common: int,
    page: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    held: bool,
    seed: int,
) -> None:
    """Prompts behind a cached prefix, whose keys are new; pages may be in int8."""
    torch.manual_seed(seed)
    compute = torch.float32 if dtype == torch.int8 else dtype
    heads = kv_heads * group
    q = torch.randn(sum(prompts), heads, dim).to(compute)
    rows = sum(prompts) + len(prompts) * cached
    k, v = torch.randn(2, kv_heads, rows, dim).to(compute).transpose(1, 2)
    parts, wanted, slot, first = [], [empty_state(0, heads, dim)], 0, 0
    for tokens in prompts:
        keys = cached + tokens
        parts.append(([Run(0, cached, tokens)], [Run(slot, 0, keys)]))
        own, mine = slice(slot, slot + keys), q[first : first + tokens]
        at = torch.arange(cached, keys)
        states = reference_attention(mine, k[own], v[own], at, torch.arange(keys), window=window)
        wanted.append(states)
        slot, first = slot + keys, first + tokens

    batch = batch_of(lengths, page, common=common)
    pool, scales, whole = pool_of(batch.slots, kv_heads, dim, dtype)
    asked = torch.randn(len(lengths), heads, dim).to(compute)
    state = empty_state(*q.shape) if held else None
    got, decoded = pod.attend(
        pod.Prompts(q, k, v, parts, state),
        pod.Decoding(asked, *pool, PagedRows(batch.runs, batch.positions), scales),
        dim**-0.5,
        window,
    )
    want = State(*(torch.cat(each) for each in zip(*wanted, strict=True)))
    near_state(got, want, compute)
    near_state(decoded, defined(asked, whole, batch, window), compute)


def test_bad_input_is_named() -> None:
    q, k = torch.zeros(4, 4, 64), torch.zeros(8, 2, 64)
    prompts = pod.Prompts(q, k, k, [([Run(0, 0, 4)], [Run(0, 0, 4)])])
    rows = PagedRows([[Run(0, 0, 4)]], [3])
    for named, changed in (
        (
            "decoding.q is bfloat16",
            pod.Decoding(q[:1].bfloat16(), k.bfloat16(), k.bfloat16(), rows),
        ),
        ("decoding.q has shape", pod.Decoding(torch.zeros(1, 2, 64), k, k, rows)),
        ("decoding.k_pool has shape", pod.Decoding(q[:1], k[:, :1], k[:, :1], rows)),
        ("rows has 1 rows, q 2", pod.Decoding(q[:2], k, k, rows)),
    ):
        with pytest.raises(ValueError, match=named.replace(".", r"\.")):
            pod.attend(prompts, changed, 0.1)
