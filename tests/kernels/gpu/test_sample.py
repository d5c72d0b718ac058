"""A GPU draws the tokens that the definition draws, from the same seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels.contracts import Choices
from sps2.kernels.gpu import sample as on_gpu
from sps2.kernels.gpu.sample import sample
from sps2.kernels.sample import sample as defined
from sps2.kernels.sample import truncate


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "CHUNK", 128)


def choices(
    rows: int,
    temperature: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Choices:
    return Choices(
        torch.full((rows,), temperature),
        torch.full((rows,), min_p),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
    )


@given(
    rows=st.integers(0, 2),
    vocab=st.integers(1, 130),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.0]),
    size=st.sampled_from([0.1, 3.0, 1e4]),
    hidden=st.booleans(),
    seed=st.integers(0, 2**56),
)
@settings(max_examples=12, deadline=None)
def test_it_draws_what_the_definition_draws(
    rows: int,
    vocab: int,
    temperature: float,
    min_p: float,
    top_k: int,
    top_p: float,
    size: float,
    hidden: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    seed %= 2**31
    logits = torch.randn(rows, vocab) * size
    if hidden and vocab > 1:
        logits[:, vocab // 2] = -torch.inf
    made = choices(rows, temperature, min_p, top_k, top_p, seed)
    assert torch.equal(sample(logits, made), defined(logits, made))


def test_every_token_that_is_kept_comes_and_no_other() -> None:
    torch.manual_seed(0)
    logits = torch.randn(100)
    made = choices(30, 1.3, 0.1, 12, 0.5)
    kept = truncate(logits / 1.3, 0.1, 12, 0.5).isfinite().nonzero()[:, 0].tolist()
    assert 2 < len(kept) < 12
    assert set(sample(logits.expand(30, -1).contiguous(), made).tolist()) == set(kept)


def test_of_equally_likely_tokens_top_p_keeps_the_first() -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0]).repeat(6, 1)
    assert set(sample(logits, choices(6, top_k=1)).tolist()) == {1, 3}
    assert set(sample(logits, choices(6, top_p=0.1)).tolist()) == {1}
    assert set(sample(logits, choices(6, top_p=0.6)).tolist()) == {1, 3}
    assert set(sample(logits, choices(6, temperature=0.0)).tolist()) == {1}
    made = choices(2, top_p=0.5)._replace(draws=torch.tensor([0.5, 0.9999999], dtype=torch.float64))
    assert sample(torch.zeros(2, 200), made).tolist() == [50, 99]  # over several chunks


def test_bad_input_is_named() -> None:
    logits, made = torch.zeros(2, 9), choices(2)
    for named, arguments in (
        ("logits is bfloat16", (logits.bfloat16(), made)),
        ("logits has no tokens", (logits[:, :0], made)),
        ("choices.top_k is int64", (logits, made._replace(top_k=made.top_k.long()))),
        ("choices.draws has shape", (logits, made._replace(draws=made.draws[:1]))),
    ):
        with pytest.raises(ValueError, match=named.replace(".", r"\.")):
            sample(*arguments)
