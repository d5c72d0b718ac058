"""Groups in one process: exact ones agree with one rank, and send what the formulas say."""

import pytest
import torch

from sps2.cli.bench.answer import predicted
from sps2.cli.bench.compare import compare, summary
from sps2.cli.bench.group import even, fill
from sps2.cli.bench.settings import EXACT, scheme_of
from sps2.common.model.llama import Llama
from sps2.services.scheduler.traffic import loads

IDS = torch.randint(384, (400,), generator=torch.Generator().manual_seed(5)).tolist()
RANKS = 3


@pytest.mark.parametrize("setting", ["exact", "int8", "ring", "pass_q"])
def test_bytes_are_those_of_the_formulas_in_bfloat16(model: Llama, setting: str) -> None:
    scheme = scheme_of(setting, model.config.layers)
    spans = even(len(IDS), RANKS, scheme)
    expected = loads(model.config, 2, scheme, spans).by_purpose
    assert fill(model, IDS, scheme, RANKS).sent_bytes == expected


@pytest.mark.parametrize(
    "setting", ["exact", "ring", "pass_q", "csa:drop=0,kv_transfer_dtype=auto"]
)
def test_exact_settings_change_nothing(model: Llama, setting: str) -> None:
    one = fill(model, IDS, EXACT, 1, keep=True)
    group = fill(model, IDS, scheme_of(setting, model.config.layers), RANKS, keep=True)
    torch.testing.assert_close(group.hidden, one.hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(group.keys, one.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(group.values, one.values, atol=1e-4, rtol=1e-4)
    (rows,) = compare(model, IDS, one.hidden, [group.hidden], range(100, 400))
    found = summary(rows)
    assert found.tokens == 300
    assert abs(found.perplexity_change) < 1e-5
    assert abs(found.kl) < 1e-6
    assert found.agreement == 1


def test_what_is_left_out_shows(model: Llama) -> None:
    one = fill(model, IDS, EXACT, 1)
    settings = ["exact", "int8", "strided:budget=.1"]
    layers = model.config.layers
    others = [fill(model, IDS, scheme_of(s, layers), RANKS).hidden for s in settings]
    compared = compare(model, IDS, one.hidden, others, range(100, 400))
    exact, int8, strided = (summary(rows).kl for rows in compared)
    assert abs(exact) < int8 < strided
    assert 1e-7 < int8 < 1e-2


def test_divergence_is_that_of_the_definition(model: Llama) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = len(IDS), model.config.hidden_size
    a, b = torch.randn(2, *shape, generator=generator)
    (rows,) = compare(model, IDS, a, [b], range(1, 400))
    p, q = (model.logits(x[:-1]).double().log_softmax(-1) for x in (a, b))
    targets = torch.tensor(IDS)[1:, None]
    torch.testing.assert_close(rows.kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows.nll.double(), -q.gather(1, targets)[:, 0], rtol=1e-4, atol=1e-5)
    assert rows.agrees.bool().equal(p.argmax(-1) == q.argmax(-1))
    assert len(rows.last(1 / 3).kl) == 133


def test_answers_are_decoded_from_the_keys_that_were_kept(model: Llama) -> None:
    filled = fill(model, IDS[:-4], EXACT, 1, keep=True)
    whole = fill(model, IDS, EXACT, 1)
    expected = model.logits(whole.hidden[-5:-1]).argmax(-1).tolist()
    assert predicted(model, filled, IDS[-4:]) == expected
