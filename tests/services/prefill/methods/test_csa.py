"""CSA: exact where nothing is dropped, and exactly its kept set where something is."""

import pytest
import torch

from sps2.common.errors import Internal
from sps2.common.messages import Scheme, Selection
from sps2.common.spans import Span, consecutive
from sps2.kernels import coded_streams
from sps2.kernels.contracts import BLOCK
from sps2.kernels.csa_scores import choose_probes
from sps2.services.prefill.methods import csa_coded
from sps2.services.prefill.methods.csa import Csa

from ...world import greedy, oracle, tiny_model, world
from ..ranks import attended, config, random_qkv, reference


def selection(layers: int, drop: float, fine: float = 0.0, **changes: object) -> Selection:
    return Selection((drop,) * layers, (fine,) * layers, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
async def test_threshold_zero_is_exact(ranks: int, pipelined: bool, rounds: int) -> None:
    model = tiny_model()
    prompt = torch.randint(97, (333,), generator=torch.Generator().manual_seed(3)).tolist()
    _, answer = await oracle(model, prompt, 8)
    scheme = Scheme("csa", selection=selection(3, 0, rounds=rounds), pipelined=pipelined)
    async with world(model, ranks, 2, pages=128) as shards:
        replies, tokens = await shards.run("r", prompt, greedy(8), scheme=scheme)
    assert [token.id for token in tokens] == answer
    done = [reply.prefilled.exchanged for reply in replies]
    assert all(each.blocks == each.kept_blocks for each in done)
    assert all(sum(each.lost) == 0 for each in done)


CASES = [
    selection(1, 1.2, held_out=1.0, rounds=2),
    selection(1, 1.5, held_out=1.0, rounds=1),
    selection(1, 1.2, held_out=0.3, rounds=2),
    selection(1, 0.0, held_out=1.0, budget=0.3),
]


@pytest.mark.parametrize("chosen", CASES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (5, 1)])
async def test_attention_is_exact_over_what_was_kept(
    chosen: Selection, heads: tuple[int, int]
) -> None:
    shape = config(*heads)
    spans = consecutive(1500, 4, 0.001, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    out, attends, _ = await attended(shape, spans, Scheme("csa", selection=chosen), q, k, v)
    hidden, kept, blocks = kept_set(spans, attends, shape.kv_heads)
    assert 0 < kept < blocks
    exact = reference(q, k, v, hidden=hidden)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    (first,) = spans[0]
    assert not hidden[:, first.stop :, :BLOCK].any(), "the prompt's first block is always there"


async def test_probes_take_half_a_byte_a_number() -> None:
    shape = config(6, 2, dim=64)
    spans = consecutive(1500, 2, 0.0, BLOCK)
    scheme = Scheme("csa", selection=selection(1, 0.01, rounds=1))
    _, _, groups = await attended(shape, spans, scheme, *random_qkv(1500, shape, 1))
    probes = choose_probes(spans[1][0].tokens, 4, 64).rows
    assert groups[1].sent["probe"] == len(probes) * 6 * (64 // 2 + 1 + 2)


async def test_two_rounds_keep_no_more_than_one() -> None:
    shape = config(6, 2)
    spans = consecutive(1500, 4, 0.0, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    counts = []
    for rounds in (1, 2):
        scheme = Scheme("csa", selection=selection(1, 2, held_out=1.0, rounds=rounds))
        _, attends, _ = await attended(shape, spans, scheme, q, k, v)
        counts.append(kept_set(spans, attends, 2)[1])
    assert counts[1] < counts[0]


async def test_quantised_blocks_are_near_and_small() -> None:
    shape = config(6, 2, dim=64)
    spans = consecutive(1500, 4, 0.0, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    errors, sizes = [], []
    for kv_transfer_dtype, fine in (("auto", 0.0), ("int8", 0.0), ("int8", 0.05), ("int8", 9.0)):
        chosen = selection(1, 0.001, fine, held_out=1.0)
        scheme = Scheme("csa", 1, kv_transfer_dtype, chosen)  # type: ignore[arg-type]
        out, attends, groups = await attended(shape, spans, scheme, q, k, v)
        exact = reference(q, k, v, hidden=kept_set(spans, attends, 2)[0])
        errors.append(float((out - exact).abs().mean()))
        sizes.append(sum(group.sent["kv"] for group in groups))
    assert errors == sorted(errors)
    assert errors[-1] < 0.1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.28 * sizes[0]  # of float32
    assert sizes[3] < 0.16 * sizes[0]


STEPS = 0.02, 0.1
"""Finer than any setting has, so that what is left is close to exact."""


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
async def test_coded_blocks_are_those_that_were_kept(heads: tuple[int, int], rounds: int) -> None:
    shape = config(*heads, dim=16)
    spans = consecutive(1500, 4, 0.0, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    chosen = selection(1, 1.6, held_out=1.0, steps=STEPS, rounds=rounds)
    out, attends, _ = await attended(shape, spans, Scheme("csa", 1, "int8", chosen), q, k, v)
    hidden, kept, blocks = kept_set(spans, attends, shape.kv_heads)
    assert 0 < kept < blocks
    exact = reference(q, k, v, hidden=hidden)
    assert float((out - exact).norm() / exact.norm()) < 0.03


async def test_coded_blocks_are_nearer_and_smaller_than_those_in_4_bits() -> None:
    shape = config(6, 2, dim=64)
    spans = consecutive(1500, 4, 0.0, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    errors, sizes = [], []
    for steps in ((0.05, 0.3), (0.2, 1.2), None):
        chosen = selection(1, 0.2, fine=9, held_out=1.0, steps=steps)
        scheme = Scheme("csa", kv_transfer_dtype="int8", selection=chosen)
        out, attends, groups = await attended(shape, spans, scheme, q, k, v)
        exact = reference(q, k, v, hidden=kept_set(spans, attends, 2)[0])
        errors.append(float((out - exact).norm() / exact.norm()))
        sizes.append(sum(group.sent["kv"] for group in groups))
    assert errors[0] < errors[1] < errors[2] < 0.3
    assert sizes[1] < sizes[2] < sizes[0]


async def test_important_blocks_are_coded_more_finely() -> None:
    shape = config(4, 2, dim=16)
    spans = consecutive(1500, 2, 0.0, BLOCK)
    q, k, v = random_qkv(1500, shape, 1)
    k[640:700] *= 1.5
    chosen = selection(1, 0.9, held_out=1.0, steps=(0.2, 1.0))
    _, attends, _ = await attended(shape, spans, Scheme("csa", 1, "int8", chosen), q, k, v)
    consumer = attends[1]
    assert isinstance(consumer, Csa)
    levels = consumer.kept[0, 0].levels
    assert levels.argmax(1).tolist() == [10, 10]
    assert levels.amin(1).tolist() == [1, 1]


async def test_a_damaged_stream_is_an_error_that_names_its_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = config(4, 2, dim=16)
    spans = consecutive(1500, 2, 0.0, BLOCK)
    scheme = Scheme("csa", 1, "int8", selection(1, 0.3, steps=(0.2, 1.0)))
    whole = coded_streams.write
    monkeypatch.setattr(csa_coded, "write", lambda *given: (whole(*given)[0], whole(*given)[1][4:]))
    with pytest.raises(Internal, match="damaged keys and values came from rank-0"):
        await attended(shape, spans, scheme, *random_qkv(1500, shape, 1))


async def test_windowed_layers_exchange_everything_they_see() -> None:
    shape = config(4, 2, window=100)
    spans = consecutive(1000, 3, 0.0, BLOCK)
    q, k, v = random_qkv(1000, shape, 1)
    scheme = Scheme("csa", selection=selection(1, 0.5))
    out, _, groups = await attended(shape, spans, scheme, q, k, v)
    torch.testing.assert_close(out.double(), reference(q, k, v, 100), rtol=1e-5, atol=1e-5)
    assert [group.sent["kv"] for group in groups] == [99 * 2 * 2 * 8 * 4] * 2 + [0]


def kept_set(
    spans: list[tuple[Span, ...]], attends: list[object], kv_heads: int
) -> tuple[torch.Tensor, int, int]:
    """What nobody sees, [kv_heads, queries, keys]; how many blocks were kept, and there were."""
    tokens = spans[-1][-1].stop
    hidden = torch.zeros(kv_heads, tokens, tokens, dtype=torch.bool)
    kept = blocks = 0
    for rank, attend in enumerate(attends):
        assert isinstance(attend, Csa)
        (mine,) = spans[rank]
        for (_, owner), sent in attend.kept.items():
            (theirs,) = spans[owner]
            dropped = (sent.levels == 0).repeat_interleave(BLOCK, 1)
            hidden[:, mine.start : mine.stop, theirs.start : theirs.stop] = dropped[:, None]
            kept += int((sent.levels > 0).sum())
            blocks += sent.levels.numel()
    return hidden, kept, blocks
