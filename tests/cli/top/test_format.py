"""Numbers keep to their columns."""

import pytest

from sps2.cli.top.format import Column, bar, elapsed, latency, line, percent, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.25, "0.2"),
        (7.3, "7.3"),
        (42.4, "42"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (12_345, "12k"),
        (3_400_000, "3.4M"),
        (2.5e9, "2.5G"),
        (9.99e14, "999T"),
    ],
)
def test_short(value: float | None, text: str) -> None:
    assert short(value) == text


def test_times_have_at_most_six_characters() -> None:
    for power in range(-6, 8):
        for factor in (1, 5, 9.4, 9.949, 9.951, 9.994, 9.996, 9.9999):
            assert len(latency(factor * 10.0**power)) <= 6, factor * 10.0**power
            assert len(elapsed(factor * 10.0**power)) <= 6, factor * 10.0**power
    assert (latency(None), latency(0.0124), latency(0.42), latency(1.3)) == (
        "-",
        "12.4ms",
        "420ms",
        "1.30s",
    )
    assert (elapsed(61.0), elapsed(100.0), elapsed(3700.0)) == ("61.0s", "1m40s", "1h01m")


def test_bars() -> None:
    assert bar(4, 0.0, "").plain == "────"
    assert bar(4, 0.001, "").plain == "╸───"
    assert bar(4, 0.5, "").plain == "━━──"
    assert bar(4, 2.0, "").plain == "━━━━"
    assert bar(4, 0.25, "", 0.5).plain == "━━━─"


def test_rows_are_aligned() -> None:
    columns = [Column("A", 5), Column("B", 4, right=True)]
    assert line(columns, ["x", "7"]).plain == " x        7 "
    assert line(columns, ["too long", ("123456", "red")]).plain == " too … 123… "


def test_nothing_is_less_than_nothing() -> None:
    assert [percent(share) for share in (None, -1e-17, 0, 0.004, 0.126, 1)] == [
        *("-", "0%", "0%", "0%", "13%", "100%"),
    ]
