"""Profiles of GPUs that nobody measured: against public measurements, and what follows."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sps2.cli.simulator.hardware import CARDS, MARGIN, Card, card_of, pages, roofline, weight_bytes
from sps2.cli.simulator.models import SHAPES, named, shape_of
from sps2.cli.simulator.points_page import written
from sps2.cli.simulator.profile import Profile, check_curve, read_profile
from sps2.cli.simulator.public_points import POINTS
from sps2.cli.simulator.sharing import LENGTHS, sharing_of
from sps2.common.errors import Invalid
from sps2.services.scheduler.schemes import Schemes

ROOT = Path(__file__).parent.parent.parent
PAIRS = [
    ("llama-3-8b", 1),
    ("llama-3-70b", 4),
    ("llama-3-70b", 8),
    ("qwen2.5-7b", 1),
    ("yi-34b-200k", 4),
    ("mistral-7b", 1),
]


def test_public_points_are_within_the_stated_margin() -> None:
    errors = sorted(abs(each.error) for each in POINTS if each.is_fitted)
    assert len(errors) > 30
    assert errors[round(0.95 * len(errors)) - 1] <= MARGIN
    assert sum(errors) / len(errors) < MARGIN / 2


def test_every_card_but_the_newest_has_points_of_each_phase() -> None:
    for card in ("A100-80G", "H100-SXM"):
        kinds = {each.what for each in POINTS if each.card.name == card}
        assert {"product", "prefill", "step"} <= kinds
    assert any(each.card.name == "H200" for each in POINTS)


def test_points_that_do_not_count_say_why() -> None:
    assert all(each.is_fitted != bool(each.why) for each in POINTS)


def test_the_page_has_the_points() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    assert page == written(page)
    assert f"+- {MARGIN:.0%}".replace("%", " %") in page


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_profile_names_the_source_of_each_constant(card: Card, tmp_path: Path) -> None:
    made = roofline(named("llama-3-8b"), card)
    constants = {
        name
        for name in Profile.__struct_fields__
        if name.endswith(("_s", "_gbit")) and getattr(made, name)
    }
    assert constants <= made.sources.keys()
    assert not made.is_measured
    assert "roofline, +- 25%" in made.name
    assert {"tflops", "memory_gb", "bandwidth_gb", "watts", "price"} <= card.sources.keys()
    path = tmp_path / "made.json"
    path.write_bytes(msgspec.json.encode(made))
    assert read_profile(path) == made


@pytest.mark.parametrize(("model", "tp"), PAIRS)
def test_times_rise_with_work_and_fall_with_cards(model: str, tp: int) -> None:
    shape = named(model)
    made = roofline(shape, "h100-sxm", tp)
    for curve in (made.pass_s, made.step_s):
        check_curve(curve, model)
        seconds = [each for _, each in curve]
        assert seconds == sorted(seconds)
    slower = roofline(shape, "A100-80G", tp)
    assert slower.prefill_s(8000, 32e6) > 1.5 * made.prefill_s(8000, 32e6)
    if tp > 1:
        one = roofline(shape, "h100-sxm", 1)
        gained = one.prefill_s(8000, 32e6) / made.prefill_s(8000, 32e6)
        assert 0.5 * tp < gained < tp
    wider = roofline(shape, "H200", tp)
    assert wider.decode_s(1, 1000, False) < made.decode_s(1, 1000, False)


def test_a_link_is_a_network_if_one_is_given() -> None:
    shape = named("llama-3-70b")
    inside = roofline(shape, "H100-SXM", 8)
    outside = roofline(shape, "H100-SXM", 8, link_gbit=400.0)
    assert outside.link_gbit == pytest.approx(8 * 288)
    assert inside.link_gbit > 8 * outside.link_gbit / 8
    assert outside.share_s > inside.share_s


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(("model", "tp"), PAIRS)
def test_the_scheduler_predicts_what_the_profile_does(model: str, tp: int, card: str) -> None:
    shape = named(model)
    made = roofline(shape, card, tp)
    sharing = sharing_of(made, shape)
    assert sharing.link_gbit == made.link_gbit
    assert sharing.link_latency_s == pytest.approx(made.link_latency_s)
    schemes = Schemes(shape, 2, sharing, tp=tp)
    for tokens in range(2_000, 100_001, 2_000):
        own = made.prefill_s(tokens, tokens * tokens / 2)
        assert schemes.alone_s(tokens) == pytest.approx(own, rel=0.05)


def test_rates_follow_from_a_measured_profile_too() -> None:
    shape = named("smollm2-135m")
    made = msgspec.structs.replace(
        roofline(shape, "A100-80G"),
        pass_s=((1, 0.03), (16, 0.05), (256, 0.33), (2048, 2.5)),
        pair_s=4.4e-7,
        share_s=0.02,
        link_gbit=10.0,
    )
    sharing = sharing_of(made, shape)
    schemes = Schemes(shape, 2, sharing)
    for tokens in LENGTHS:
        own = made.prefill_s(tokens, tokens * tokens / 2)
        assert schemes.alone_s(tokens) == pytest.approx(own, rel=0.05)
    assert sharing.link_latency_s == pytest.approx(0.02 / 60)
    free = sharing_of(msgspec.structs.replace(made, pair_s=0.0), shape)
    assert Schemes(shape, 2, free).alone_s(2000) == pytest.approx(made.prefill_s(2000, 0), rel=0.05)


def test_pages_are_what_weights_and_activations_leave() -> None:
    shape = named("llama-3-8b")
    found = pages(shape, "H100-SXM", page_tokens=32)
    kv = found * 32 * shape.kv_bytes(2)
    assert 80e9 - 0.2 * 80e9 < kv + weight_bytes(shape) < 0.9 * 80e9
    assert pages(shape, "H200") > 1.9 * found
    assert pages(shape, "H100-SXM", page_tokens=64) == pytest.approx(found / 2, rel=0.01)
    assert pages(shape, "H100-SXM", kv_bytes=shape.kv_bytes(1)) == pytest.approx(
        2 * found, rel=0.01
    )
    assert pages(shape, "H100-SXM", tp=8) > 8 * found


def test_weights_are_those_of_the_names() -> None:
    billions = {"llama-3-8b": 8.03, "llama-3-70b": 70.6, "mistral-7b": 7.25, "yi-34b-200k": 34.4}
    billions |= {"qwen2.5-7b": 7.6, "qwen2.5-72b": 72.7, "llama-3.1-405b": 406.0}
    billions |= {"smollm2-135m": 0.1345, "llama-2-70b": 69.0, "phi-3-14b": 14.0, "lwm-7b-1m": 6.74}
    for name, size in billions.items():
        assert weight_bytes(named(name)) / 2e9 == pytest.approx(size, rel=0.01), name


def test_a_model_that_does_not_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(Invalid, match=r"141 GB for its weights.*take tp 4"):
        pages(named("llama-3-70b"), "H100-SXM")
    with pytest.raises(Invalid, match="take tp 2"):
        pages(named("llama-3-70b"), "H200")
    with pytest.raises(Invalid, match="more memory"):
        pages(named("llama-3.1-405b"), "H100-SXM", tp=8)
    with pytest.raises(Invalid, match="tp 3 cannot split"):
        roofline(named("llama-3-8b"), "H100-SXM", 3)


def test_unknown_names_are_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"'B300'.*A100-80G, H100-SXM, H200"):
        card_of("B300")
    with pytest.raises(Invalid, match=r"no shape.*llama-3-8b"):
        named("llama-9")
    with pytest.raises(Invalid, match=r"'llama-9' is not known.*config\.json.*qwen2\.5-72b"):
        shape_of("llama-9")


def test_any_config_json_is_a_shape(tmp_path: Path) -> None:
    table = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8_192,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(table))
    expected = named("llama-3-8b")
    for found in (shape_of(str(tmp_path)), shape_of(str(tmp_path / "config.json"))):
        assert replace(found, rope=expected.rope, norm_eps=expected.norm_eps) == expected
    assert {shape_of(name).layers for name in SHAPES} == {named(name).layers for name in SHAPES}


def test_shapes_and_cards_need_no_torch() -> None:
    code = (
        "import sys; from sps2.cli.simulator.models import named; "
        "from sps2.cli.simulator.hardware import roofline; "
        "from sps2.cli.simulator.sharing import sharing_of; "
        "m = named('llama-3-8b'); sharing_of(roofline(m, 'H200'), m); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
