"""A GPU packs blocks as a CPU does, and attends to them as if they were unpacked."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sps2.kernels import State
from sps2.kernels.contracts import BLOCK, Bits, Packed
from sps2.kernels.gpu import kv_quantize, packed
from sps2.kernels.kv_quantize import blocks_of, pack, unpack
from sps2.kernels.reference import reference_attention

from .close import DTYPES, near_state


def some(tokens: int, dim: int, dtype: torch.dtype, kept: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keys with an offset, values, and which of their blocks are kept."""
    k, v = (torch.randn(2, tokens, dim).to(dtype).transpose(0, 1) for _ in range(2))
    return k * 3 + 1, v, torch.rand(2, -(-tokens // BLOCK)) < kept


@given(
    tokens=st.sampled_from([1, 10, BLOCK, 3 * BLOCK + 7]),
    dim=st.sampled_from([16, 64, 80, 96, 256]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(DTYPES),
    kept=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@example(tokens=10, dim=256, bits=4, dtype=torch.bfloat16, kept=1.0, seed=15)
@settings(max_examples=15, deadline=None)
def test_it_packs_and_unpacks_alike(
    tokens: int, dim: int, bits: Bits, dtype: torch.dtype, kept: float, seed: int
) -> None:
    torch.manual_seed(seed)
    k, v, which = some(tokens, dim, dtype, kept)
    got, want = kv_quantize.pack(k, v, which, bits), pack(k.float(), v.float(), which, bits)
    assert_close(got.k_scale, want.k_scale, atol=1e-6, rtol=1e-3)
    assert_close(got.v_scale, want.v_scale, atol=1e-6, rtol=1e-3)
    assert (got.k.shape, got.v.shape) == (want.k.shape, want.v.shape)
    alike = want._replace(k=got.k, v=got.v)
    sides = unpack(alike, torch.float32), unpack(want, torch.float32), (k, v)
    for there, here, x in zip(*sides, strict=True):
        # a value in the middle between levels may go either way
        blocks = blocks_of(x.float())[which]
        either = torch.where(there == here, here, (there + here) / 2)
        assert_close(either, torch.where(there == here, here, blocks), atol=1e-4, rtol=1e-4)
    for back, expected in zip(kv_quantize.unpack(want, dtype), unpack(want, dtype), strict=True):
        assert_close(back, expected, atol=1e-6, rtol=0.01 if dtype == torch.bfloat16 else 1e-3)


def test_equal_numbers() -> None:
    k = torch.full((BLOCK, 2, 64), 3.0)
    made = kv_quantize.pack(k, -k, torch.ones(2, 1, dtype=torch.bool), 8)
    for there, value in zip(kv_quantize.unpack(made, k.dtype), (3.0, -3.0), strict=True):
        assert bool((there == value).all())


@given(
    n=st.integers(0, 30),
    tokens=st.sampled_from([10, BLOCK, 3 * BLOCK]),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 128]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(DTYPES),
    kept=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_attention_to_packed_blocks(
    n: int,
    tokens: int,
    group: int,
    dim: int,
    bits: Bits,
    dtype: torch.dtype,
    kept: float,
    seed: int,
) -> None:
    """In two calls that share a state, the first with room for more than there is."""
    torch.manual_seed(seed)
    q = torch.randn(n, 2 * group, dim).to(dtype)
    state: State | None = None
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(2):
        k, v, which = some(tokens, dim, torch.float32, kept)
        made, ends = kv_quantize.pack_all_on_device(k, v, which, bits)
        offsets = torch.cat((ends.new_zeros(1), ends.view(2, -1)[:, -1]))
        state = packed.attend(q, made, offsets, dim**-0.5, state)
        used = Packed(*(x[: int(ends[-1])] for x in made))
        for side, x in zip((keys, values), unpack(used, torch.float32), strict=True):
            side.append(x.split(which.sum(1).tolist()))
    assert state is not None
    for head in range(2):
        k, v = (torch.cat([half[head].flatten(0, 1) for half in x]) for x in (keys, values))
        mine = slice(head * group, (head + 1) * group)
        at, places = torch.zeros(n), torch.zeros(len(k))
        want = reference_attention(q[:, mine], k[:, None], v[:, None], at, places)
        near_state(State(state.out[:, mine], state.lse[:, mine]), want, dtype, 4.0)


K = torch.zeros(70, 2, 64)
WHICH = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("v has shape", {"v": K[:, :1]}),
        ("k is int8", {"k": K.to(torch.int8)}),
        ("which has shape", {"which": WHICH[:, :1]}),
        ("which is float32", {"which": WHICH.float()}),
    ],
)
def test_bad_input_is_named(named: str, changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"k": K, "v": K, "which": WHICH, "bits": 8}
    with pytest.raises(ValueError, match=named):
        kv_quantize.pack(**(usual | changes))


def test_what_is_not_packed_is_named() -> None:
    made = pack(K, K, WHICH)
    q, offsets = torch.zeros(3, 4, 64), torch.tensor([0, 2, 4])
    for named, changed in (
        ("packed.v has shape", made._replace(v=made.v[:1])),
        ("packed.k_scale is float32", made._replace(k_scale=made.k_scale.float())),
        ("packed.k has 20 bytes", made._replace(k=made.k[..., :20])),
    ):
        with pytest.raises(ValueError, match=named.replace(".", r"\.")):
            packed.attend(q, changed, offsets, 0.1)
    with pytest.raises(ValueError, match="offsets has 3 KV heads"):
        packed.attend(q, made, torch.tensor([0, 1, 2, 4]), 0.1)
    with pytest.raises(ValueError, match="packed has head dim 64, q 80"):
        packed.attend(torch.zeros(3, 4, 80), made, offsets, 0.1)
