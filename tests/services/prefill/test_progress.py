"""A rank tells how far it is now and then, and its shard counts every layer."""

import pytest

from sps2.common.messages import Exchanged
from sps2.services.prefill.progress import PAUSE_S, Progress, Tally


def test_layers_are_told_now_and_then_and_counted_always() -> None:
    now_s = [0.0]
    told: list[int] = []
    tally = Tally()
    progress = Progress(90, 30, tally, told.append, lambda: now_s[0])
    for layers in range(31):
        progress(layers)
        now_s[0] += PAUSE_S / 4
    assert told == [12, 24, 36, 48, 60, 72, 84]
    assert tally.counters()["prefill_tokens"] == pytest.approx(90)


def test_short_prompts_are_not_told_of() -> None:
    told: list[int] = []
    tally = Tally()
    progress = Progress(7, 3, tally, told.append, lambda: 0.0)
    for layers in range(4):
        progress(layers)
    assert not told
    assert tally.counters()["prefill_tokens"] == pytest.approx(7)


def test_transfers_are_counted_with_what_was_hidden() -> None:
    tally = Tally()
    for _ in range(2):
        tally.exchanged(Exchanged({}, 3.0, 2.0, 1.0, 0.75, blocks=10, kept_blocks=3))
    counters = tally.counters()
    assert (counters["exchange_s"], counters["hidden_s"]) == (2.0, 1.5)
    assert (counters["csa_blocks"], counters["csa_kept_blocks"]) == (20, 6)
