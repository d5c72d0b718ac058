"""Quantiles of the last minute."""

from sps2.services.gateway.monitoring.recent import MOST, WINDOW_S, Recent


def test_nearest_rank() -> None:
    recent = Recent(lambda: 0.0)
    assert recent.quantiles("ttft") == {}
    recent.add(3.0)
    assert recent.quantiles("ttft") == {"ttft_p50_s": 3.0, "ttft_p99_s": 3.0}
    for value in range(100):
        recent.add(float(value))
    assert recent.quantiles("ttft") == {"ttft_p50_s": 49.0, "ttft_p99_s": 98.0}


def test_what_is_old_or_too_much_goes() -> None:
    now_s = [0.0]
    recent = Recent(lambda: now_s[0])
    recent.add(100.0)
    now_s[0] = WINDOW_S + 1
    recent.add(1.0)
    assert recent.quantiles("tbt")["tbt_p99_s"] == 1.0
    for value in range(2 * MOST):
        recent.add(float(value))
    assert recent.quantiles("tbt")["tbt_p50_s"] == 1.5 * MOST - 1
    now_s[0] += WINDOW_S + 1
    assert recent.quantiles("tbt") == {}
