"""The choice of how a prefill group works together."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sps2.common.config import Sharing
from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions, Scheme, Selection
from sps2.common.page_hashes import root
from sps2.common.spans import Span
from sps2.services.scheduler.csa_thresholds import (
    CODED_OVER_PACKED,
    FILE,
    STEPS,
    Calibration,
    load,
)
from sps2.services.scheduler.hardware import hardware_of
from sps2.services.scheduler.rates import CODED_A_SECOND, Rates
from sps2.services.scheduler.schemes import CLOSE, EXACT, Schemes
from sps2.services.scheduler.traffic import EXPECTED_KEPT, PACKED, loads

from .test_core import CONFIG

WIDE = replace(CONFIG, heads=32, kv_heads=32, layers=4)


def schemes(config=CONFIG, attention="exact", calibration=None, **sharing):
    return Schemes(config, 2, Sharing(**sharing), attention, calibration)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 1000, 8192])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("method", [None, "ring", "gather", "pass_q"])
def test_every_token_is_dealt_once(tokens, ranks, method):
    partition = schemes().choose(tokens, ranks, PrefillOptions(method=method))
    positions = sorted(p for own in partition.spans for span in own for p in range(*span))
    assert positions == list(range(tokens))
    assert all(any(span.tokens for span in own) for own in partition.spans)
    assert len(partition.spans) <= ranks
    if method and len(partition.spans) > 1 and tokens >= 2 * ranks:
        assert partition.scheme.method == method


@pytest.mark.parametrize("link", [0.01, 1.0, 1000.0])
def test_the_prediction_decides(link):
    chooser = schemes(WIDE, link_gbit=link)
    chosen = chooser.choose(8192, 8, PrefillOptions())
    forced = [chooser.choose(8192, 8, PrefillOptions(method=each)) for each in EXACT]
    assert chosen.predicted_s <= CLOSE * min(each.predicted_s for each in forced)


def test_slow_links_take_a_method_that_moves_little():
    chooser = schemes(WIDE, link_gbit=0.01)
    assert chooser.choose(8192, 8, PrefillOptions()).scheme.method in ("ulysses", "usp")


def test_spans_in_a_row_even_out_arithmetic_or_links():
    fast = schemes(link_gbit=1000.0).choose(8192, 4, PrefillOptions(method="gather"))
    slow = schemes(link_gbit=0.001).choose(8192, 4, PrefillOptions(method="gather"))
    first, *_, last = (own[0].tokens for own in fast.spans)
    assert first > last
    assert len({own[0].tokens for own in slow.spans}) == 1


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        (PrefillOptions(method="ulysses"), 8, "at most 6"),
        (PrefillOptions(method="usp"), 3, "4, 6 or 8"),
        (PrefillOptions(method="ring", attention="fast"), 4, "leave out method"),
    ],
)
def test_what_cannot_be_done_says_what_can(options, ranks, message):
    with pytest.raises(Invalid, match=message) as caught:
        schemes().choose(8192, ranks, options)
    at_fault = "sps2.method" if options.attention else "sps2.sp_degree"
    assert (caught.value.field, caught.value.code) == (at_fault, "invalid_value")


def test_a_method_that_is_asked_for_means_exact_attention():
    partition = schemes(attention="fast").choose(8192, 4, PrefillOptions(method="ring"))
    assert (partition.attention, partition.scheme.method) == ("exact", "ring")


def test_sparse_settings_select_in_long_prompts_only():
    chosen = schemes(attention="balanced")
    short, long = chosen.choose(4000, 4, PrefillOptions()), chosen.choose(8000, 4, PrefillOptions())
    assert (short.scheme.method, short.scheme.kv_transfer_dtype) == ("gather", "int8")
    assert (long.scheme.method, long.scheme.kv_transfer_dtype) == ("csa", "int8")
    assert long.scheme.selection is not None
    assert short.attention == long.attention == "balanced"
    faster = chosen.choose(8000, 4, PrefillOptions(attention="fast")).scheme.selection
    assert faster is not None
    assert sum(faster.drop) > sum(long.scheme.selection.drop)


@pytest.mark.parametrize("setting", ["balanced", "fast"])
def test_slow_links_take_coded_blocks_and_fast_links_packed_ones(setting):
    def chosen(link_gbit, **options):
        chooser = schemes(WIDE, setting, link_gbit=link_gbit)
        return chooser.choose(8192, 4, PrefillOptions(**options))

    slow, fast = chosen(0.05), chosen(100.0)
    packed = chosen(0.05, kv_transfer_dtype="int8")
    assert slow.scheme.selection.steps == STEPS[setting]
    assert fast.scheme.selection.steps is packed.scheme.selection.steps is None
    assert slow.predicted_bytes["kv"] < 0.8 * packed.predicted_bytes["kv"]
    assert slow.predicted_s < packed.predicted_s
    drops = zip(slow.scheme.selection.drop, fast.scheme.selection.drop, strict=True)
    assert all(few == pytest.approx(CODED_OVER_PACKED[setting] * more) for few, more in drops)


def test_coding_takes_time_that_transfers_do_not_hide():
    """On a link of no cost, coded blocks would only be later."""
    sharing = Sharing(link_gbit=1e6)
    rates = Rates(WIDE, hardware_of(sharing), sharing.attention_rate)
    spans = [(Span(0, 4096),), (Span(4096, 8192),)]
    scheme = Scheme("csa", 1, "int8", Selection((0.2,) * 4, (0.2,) * 4))
    coded = msgspec.structs.replace(
        scheme, selection=Selection((0.2,) * 4, (0.2,) * 4, steps=(0.1, 1.0))
    )
    numbers = EXPECTED_KEPT * 4096 * WIDE.layers * WIDE.kv_heads * 2 * WIDE.head_dim
    more = rates.seconds(coded, spans, [0, 0], 32) - rates.seconds(scheme, spans, [0, 0], 32)
    assert more == pytest.approx(numbers / CODED_A_SECOND)


def test_a_calibration_is_used_and_one_of_another_model_refused(tmp_path: Path):
    assert load(tmp_path, "this") is None
    selection = Selection((0.5,) * 3, (0.6,) * 3)
    other = Selection((0.7,) * 3, (0.8,) * 3)
    made = Calibration("this", {"fast": {"2": selection, "8": other}}, "relative")
    (tmp_path / FILE).write_bytes(msgspec.json.encode(made))
    found = load(tmp_path, "this")
    assert found == made
    partition = schemes(calibration=found).choose(8000, 4, PrefillOptions(attention="fast"))
    assert partition.scheme.selection == selection
    with pytest.raises(Invalid, match="another model"):
        load(tmp_path, "that")
    old = msgspec.to_builtins(made)
    del old["thresholds"]
    for damaged in (b"{", msgspec.json.encode(old)):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(Invalid, match="not a calibration"):
            load(tmp_path, "this")


@pytest.mark.parametrize(
    ("setting", "asked", "gbit", "lossless"),
    [
        ("auto", None, 0.1, 0.1),
        ("auto", None, 1.0, None),
        ("on", None, 10.0, 0.0),
        ("off", None, 0.1, None),
        ("auto", True, 10.0, 0.0),
        ("on", False, 0.1, None),
    ],
)
def test_bfloat16_is_packed_on_slow_links_or_as_asked(setting, asked, gbit, lossless):
    sharing = Sharing(lossless=setting, link_gbit=gbit)
    options = PrefillOptions(method="gather", lossless=asked)
    chosen = [Schemes(CONFIG, size, sharing).choose(2048, 2, options) for size in (2, 4)]
    assert [each.scheme.lossless for each in chosen] == [lossless, None]
    plain = msgspec.structs.replace(chosen[0].scheme, lossless=None)
    nbytes = loads(CONFIG, 2, plain, chosen[0].spans).by_purpose["kv"]
    share = 1 if lossless is None else PACKED
    assert chosen[0].predicted_bytes["kv"] == share * nbytes


def test_pages_of_another_setting_have_other_names():
    """Whatever shards compute them, by whichever exact method."""
    options = [PrefillOptions(attention=each) for each in ("exact", "balanced", "fast")]
    options.append(PrefillOptions(attention="exact", kv_transfer_dtype="int8"))
    assert len({root("model", *schemes().computed(each)) for each in options}) == 4
    exact = [PrefillOptions(), *(PrefillOptions(method=each, sp_degree=3) for each in EXACT)]
    assert len({root("model", *schemes().computed(each)) for each in exact}) == 1
    assert schemes(attention="fast").computed(PrefillOptions()) == schemes().computed(options[2])
