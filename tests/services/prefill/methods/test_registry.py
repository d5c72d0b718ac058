"""Every exact method equals attention in one place, whatever the spans, heads and lengths."""

import asyncio
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.messages import ExactMethod, Scheme
from sps2.common.spans import Span, consecutive, zigzag
from sps2.services.scheduler.traffic import loads

from ...world import greedy, oracle, tiny_model, world
from ..ranks import attended, config, random_qkv, reference

METHODS = [
    Scheme(method, ulysses, pipelined=pipelined)
    for method, ulysses in (
        ("ring", 1),
        ("gather", 1),
        ("pass_q", 1),
        ("ulysses", 4),
        ("usp", 2),
    )
    for pipelined in (True, False)
]


@pytest.mark.parametrize("scheme", METHODS, ids=str)
@pytest.mark.parametrize("window", [None, 20])
async def test_tokens_equal_the_oracles(scheme: Scheme, window: int | None) -> None:
    model = tiny_model(window)
    prompt = torch.randint(97, (131,), generator=torch.Generator().manual_seed(3)).tolist()
    _, answer = await oracle(model, prompt, 8)
    async with world(model, 4, 2) as shards:
        _, tokens = await shards.run("r", prompt, greedy(8), scheme=scheme)
    assert [token.id for token in tokens] == answer


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("method", ["ring", "gather", "pass_q", "ulysses"])
async def test_sixty_four_tokens_at_many_degrees(method: ExactMethod, ranks: int) -> None:
    model = tiny_model()
    prompt = torch.randint(97, (200,), generator=torch.Generator().manual_seed(ranks)).tolist()
    _, answer = await oracle(model, prompt, 64)
    degree = min(ranks, model.config.heads) if method == "ulysses" else ranks
    scheme = Scheme(method, degree if method == "ulysses" else 1)
    async with world(model, degree, 2, pages=128) as shards:
        _, tokens = await shards.run("r", prompt, greedy(64), scheme=scheme)
    assert [token.id for token in tokens] == answer


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scheme, list[tuple[Span, ...]], int, int, int | None, int]:
    """A scheme, spans for it, heads, KV heads, window and a seed."""
    ranks = draw(st.integers(1, 8))
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    method = draw(st.sampled_from(["ring", "gather", "pass_q", "ulysses", "usp"]))
    columns = 1
    if method in ("ulysses", "usp"):
        fitting = [each for each in range(1, ranks + 1) if ranks % each == 0 and each <= heads]
        columns = draw(st.sampled_from(fitting))
    tokens = draw(st.integers(2 * ranks, 90))
    if method == "gather" or draw(st.booleans()):
        inner = st.lists(
            st.integers(1, tokens - 1), min_size=ranks - 1, max_size=ranks - 1, unique=True
        )
        edges = [0, *sorted(draw(inner)), tokens]
        spans: list[tuple[Span, ...]] = [(Span(a, b),) for a, b in itertools.pairwise(edges)]
    else:
        spans = zigzag(tokens, ranks // columns, columns)
    scheme = Scheme(method, columns, pipelined=draw(st.booleans()))
    window = draw(st.none() | st.integers(1, tokens))
    return scheme, spans, heads, kv_heads, window, draw(st.integers(0, 99))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_attention_equals_float64_over_any_spans(
    case: tuple[Scheme, list[tuple[Span, ...]], int, int, int | None, int],
) -> None:
    scheme, spans, heads, kv_heads, window, seed = case
    shape = config(heads, kv_heads, window=window)
    tokens = max(span.stop for each in spans for span in each)
    q, k, v = random_qkv(tokens, shape, seed)
    out, _, groups = asyncio.run(attended(shape, spans, scheme, q, k, v))
    torch.testing.assert_close(out.double(), reference(q, k, v, window), rtol=1e-4, atol=1e-5)

    sent: dict[str, int] = {}
    for group in groups:
        for purpose, nbytes in group.sent.items():
            sent[purpose] = sent.get(purpose, 0) + nbytes
    predicted = loads(shape, 4, scheme, spans).by_purpose
    assert sent == {purpose: nbytes for purpose, nbytes in predicted.items() if nbytes}


@pytest.mark.parametrize("method", ["ring", "gather", "ulysses", "usp"])
async def test_int8_on_the_wire_costs_little_and_saves_what_is_predicted(
    method: ExactMethod,
) -> None:
    shape = config(6, 3, dim=64)
    columns = {"ulysses": 4, "usp": 2}.get(method, 1)
    q, k, v = random_qkv(1024, shape, 0)
    spans = consecutive(1024, 4, 0.0) if method == "gather" else zigzag(1024, 4 // columns, columns)
    scheme = Scheme(method, columns, "int8")
    out, _, groups = await attended(shape, spans, scheme, q, k, v)
    error = (out.double() - reference(q, k, v)).abs()
    assert 0 < error.mean() < 0.01
    plain = loads(shape, 2, Scheme(method, columns), spans).by_purpose["kv"]
    assert sum(group.sent["kv"] for group in groups) < 0.55 * plain
