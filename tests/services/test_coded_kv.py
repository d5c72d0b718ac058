"""Keys and values that are rounded and entropy-coded on their way to the shard that keeps them."""

import pytest
import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.messages import Scheme, Selection
from sps2.common.model.config import ModelConfig
from sps2.common.model.rope import Rotary
from sps2.common.transport import lossless
from sps2.kernels.contracts import BLOCK
from sps2.services import coded_kv
from sps2.services.prefill.deposit import Deposit
from sps2.services.tasks import gather_all

from .prefill.ranks import config
from .prefill.test_lossless import in_bfloat16
from .world import greedy, world

SHAPE = config(6, 2, dim=64)


def drawn(tokens: int, shape: ModelConfig, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated keys whose channels differ in mean and size, values of tokens that do, queries."""
    generator = torch.Generator().manual_seed(tokens)
    k, v = torch.randn(2, tokens, shape.kv_heads, shape.head_dim, generator=generator)
    k = k * torch.linspace(0.2, 2.0, shape.head_dim) + torch.linspace(-3, 3, shape.head_dim)
    v *= torch.rand(tokens, shape.kv_heads, 1, generator=generator)
    q = torch.randn(40, shape.heads, shape.head_dim, generator=generator)
    cosines, sines = Rotary(shape.rope, shape.head_dim).table(
        torch.arange(start, start + tokens), torch.float32
    )
    half = shape.head_dim // 2
    turned = k * cosines + torch.cat((k[..., half:], k[..., :half]), -1) * sines
    return turned.bfloat16(), v.bfloat16(), q.bfloat16()


@pytest.mark.parametrize(("tokens", "start"), [(1, 0), (64, 0), (200, 0), (130, 517)])
def test_scores_and_values_are_near(tokens: int, start: int) -> None:
    k, v, q = drawn(tokens, SHAPE, start)
    carried = coded_kv.pack(k, v, q, start, SHAPE)
    keys, values = coded_kv.unpack(carried, start, SHAPE, torch.bfloat16)
    assert keys.shape == k.shape
    assert keys.dtype == torch.bfloat16
    by_head = q.float().unflatten(1, (SHAPE.kv_heads, -1))
    scores = [torch.einsum("qhgd,khd->qhgk", by_head, x.float()) * SHAPE.scale for x in (k, keys)]
    assert float((scores[1] - scores[0]).std()) < 3 * coded_kv.STEPS.keys
    size = v.float().norm(dim=-1) / 8
    assert float(((values.float() - v.float()).abs() / size[..., None]).mean()) < 0.03
    if tokens >= 64:
        padded = -(-tokens // BLOCK) * BLOCK / tokens
        sent, plain, packed = (
            sum(each.nbytes for each in some) for some in (carried, (k, v), lossless.pack((k, v)))
        )
        assert sent < 0.5 * plain * padded
        assert sent < 0.75 * packed * padded


@pytest.mark.parametrize("part", range(coded_kv.PARTS))
def test_damage_is_told(part: int) -> None:
    k, v, q = drawn(70, SHAPE, 0)
    carried = coded_kv.pack(k, v, q, 0, SHAPE)
    carried[part] = carried[part][:-1]
    with pytest.raises(Invalid):
        coded_kv.unpack(carried, 0, SHAPE, torch.bfloat16)


@pytest.mark.parametrize("count", [-5, 0, 6000, 1 << 30])
def test_a_wrong_number_of_tokens_is_told(count: int) -> None:
    k, v, q = drawn(70, SHAPE, 0)
    carried = coded_kv.pack(k, v, q, 0, SHAPE)
    carried[0] = torch.tensor([count], dtype=torch.int32)
    with pytest.raises(Invalid):
        coded_kv.unpack(carried, 0, SHAPE, torch.bfloat16)


async def test_shards_keep_nearly_the_same_kv_in_fewer_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compared with deposits as they are, of the same prefill by coded CSA."""
    model = in_bfloat16()
    prompt = torch.randint(97, (512,), generator=torch.Generator().manual_seed(3)).tolist()
    selection = Selection((0.0,) * 3, (0.0,) * 3, (0.12, 0.85))
    scheme = Scheme("csa", kv_transfer_dtype="int8", selection=selection, pipelined=False)
    whole, kept, sent = Deposit.begin, [], []
    for begin in (whole, lambda self, layer, k, v, q=None: whole(self, layer, k, v)):
        monkeypatch.setattr(Deposit, "begin", begin)
        async with world(model, 2, 2, pages=140) as shards:
            holdings = await shards.hold("r", prompt, greedy(8))
            replies = await shards.fill("r", prompt, greedy(8), holdings, scheme=scheme)
            await gather_all(*(holding.filled.wait() for _, holding in holdings))
            sent.append(sum(reply.deposited.deposit_bytes for reply in replies))
            parts = []
            for shard, holding in holdings:
                assert holding.failed is None
                slots = [holding.pages.slot(position) for position in range(*holding.span)]
                parts += [x[slots].float() for layer in range(3) for x in shard.pool.layer(layer)]
                shard.holdings.release(("r", 0))
            kept.append(torch.cat([x.flatten() for x in parts]))
    assert float((kept[0] - kept[1]).norm() / kept[1].norm()) < 0.1
    assert not torch.equal(*kept)
    assert sent[0] < 0.6 * sent[1]
