"""Lossless packing changes the bytes that travel, and nothing that is computed."""

import pytest
import torch

from sps2.common.errors import Internal
from sps2.common.messages import ExactMethod, KvTransferDtype, Scheme, Selection
from sps2.common.model.llama import Llama
from sps2.common.model.tensor_names import shapes
from sps2.common.spans import Span, consecutive, zigzag
from sps2.common.transport import lossless
from sps2.kernels import native
from sps2.services.scheduler.traffic import loads
from sps2.services.tasks import gather_all

from ..world import greedy, tiny_config, world
from .ranks import attended, config, random_qkv

pytestmark = pytest.mark.skipif(not native.built, reason="without C++ nothing is packed")
WHERE_IT_PAYS = 0.0


def in_bfloat16() -> Llama:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).bfloat16() * (0.2 if len(shape) > 1 else 1.0)
        for name, shape in shapes(tiny_config()).items()
    }
    return Llama(tiny_config(), tensors)


def spans_of(method: ExactMethod, columns: int) -> list[tuple[Span, ...]]:
    return consecutive(1024, 4, 0.0) if method == "gather" else zigzag(1024, 4 // columns, columns)


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("method", ["gather", "ring", "ulysses", "usp", "pass_q"])
async def test_attention_is_the_same_in_fewer_bytes(method: ExactMethod, pipelined: bool) -> None:
    columns = {"ulysses": 4, "usp": 2}.get(method, 1)
    shape, spans = config(8, 4, dim=64), spans_of(method, columns)
    q, k, v = (x.bfloat16() for x in random_qkv(1024, shape, 0))
    plain, packed = (
        Scheme(method, columns, pipelined=pipelined, lossless=each)
        for each in (None, WHERE_IT_PAYS)
    )
    out, _, groups = await attended(shape, spans, plain, q, k, v)
    same, _, fewer = await attended(shape, spans, packed, q, k, v)
    assert torch.equal(out.view(torch.int16), same.view(torch.int16))
    sent, less = (sum(each.sent.total() for each in some) for some in (groups, fewer))
    assert less < 0.75 * sent
    assert less + sum(group.saved_bytes for group in fewer) == sent
    assert sum(group.saved_bytes for group in groups) == 0
    predicted = sum(loads(shape, 2, packed, spans).by_purpose.values())
    assert less == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("kv_transfer_dtype", ["auto", "int8"])
async def test_what_has_a_form_of_its_own_keeps_it(kv_transfer_dtype: KvTransferDtype) -> None:
    """CSA's blocks, and keys and values in 8 bits."""
    shape, spans = config(4, 2, dim=64), consecutive(1024, 2, 0.0, 64)
    q, k, v = (x.bfloat16() for x in random_qkv(1024, shape, 0))
    selection = Selection((0.002,), (0.01,))
    sent = []
    for each in (None, WHERE_IT_PAYS):
        schemes = [Scheme("csa", 1, kv_transfer_dtype, selection, lossless=each)]
        if kv_transfer_dtype == "int8":
            schemes.append(Scheme("gather", 1, "int8", lossless=each))
        for scheme in schemes:
            _, _, groups = await attended(shape, spans, scheme, q, k, v)
            sent.append((scheme.method, sum(group.sent.total() for group in groups)))
    half = len(sent) // 2
    assert sent[:half] == sent[half:]


async def test_shards_keep_the_same_kv_and_say_what_was_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lossless, "LEAST_BYTES", 512)
    model = in_bfloat16()
    prompt = torch.randint(97, (180,), generator=torch.Generator().manual_seed(3)).tolist()
    kept, answers, moved = [], [], []
    for each in (None, WHERE_IT_PAYS):
        async with world(model, 2, 2) as shards:
            scheme = Scheme("gather", pipelined=False, lossless=each)  # merged in one order
            holdings = await shards.hold("r", prompt, greedy(8))
            await shards.fill("r", prompt, greedy(8), holdings, scheme=scheme)
            await gather_all(*(holding.filled.wait() for _, holding in holdings))
            for shard, holding in holdings:
                slots = [holding.pages.slot(position) for position in range(*holding.span)]
                pools = [x for layer in range(3) for x in shard.pool.layer(layer)]
                kept.append(torch.cat([pool[slots].flatten() for pool in pools]))
            for shard, holding in holdings:
                assert holding.failed is None
                shard.holdings.release(("r", 0))
            replies, tokens = await shards.run("s", prompt, greedy(8), scheme=scheme)
            answers.append([token.id for token in tokens])
            moved.append([reply.deposited for reply in replies])
    for plain, packed in zip(kept[:2], kept[2:], strict=True):
        assert torch.equal(plain.view(torch.int16), packed.view(torch.int16))
    assert answers[0] == answers[1]
    for before, after in zip(*moved, strict=True):
        assert after.deposit_bytes < before.deposit_bytes
        assert after.deposit_bytes + after.saved_bytes == before.deposit_bytes
        assert before.saved_bytes == 0


async def test_nothing_is_packed_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, spans = config(4, 2, dim=64), consecutive(1024, 2, 0.0)
    q, k, v = (x.bfloat16() for x in random_qkv(1024, shape, 0))
    for rate, saves in ((0.01, False), (1e4, True)):
        monkeypatch.setattr(lossless, "coder_gbit", lambda rate=rate: rate)
        _, _, groups = await attended(shape, spans, Scheme("gather", lossless=0.1), q, k, v)
        assert (sum(group.saved_bytes for group in groups) > 0) == saves


async def test_damage_on_the_way_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lossless.pack
    monkeypatch.setattr(lossless, "pack", lambda tensors: tuple(x[:-2] for x in whole(tensors)))
    shape, spans = config(4, 2, dim=64), consecutive(1024, 2, 0.0)
    q, k, v = (x.bfloat16() for x in random_qkv(1024, shape, 0))
    with pytest.raises(Internal, match=r"a kv frame from rank-0: .* damaged"):
        await attended(shape, spans, Scheme("gather", lossless=WHERE_IT_PAYS), q, k, v)
