"""How many shards a prompt gets: by what it gains, and by what it costs others."""

from dataclasses import replace

import pytest

from sps2.common.config import Sharing
from sps2.common.messages import PrefillOptions
from sps2.services.scheduler.degrees import LEAST_S, SPARE, Degrees
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG

NOTHING = PrefillOptions()
LARGE = replace(
    CONFIG,
    hidden_size=4096,
    intermediate_size=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    windows=(None,) * 32,
)
FAST = Sharing(gflops=5e5, link_gbit=3600.0, link_latency_s=1e-5)


def best(tokens: int, idle: int, sharing: Sharing = FAST, **more: object) -> int:
    schemes = Schemes(LARGE, 2, sharing)
    return Degrees(schemes).best(tokens, 8, idle, NOTHING, **more).degree  # type: ignore[arg-type]


def test_an_idle_cluster_shares_a_prompt_among_all() -> None:
    assert best(100_000, 8) == 8
    assert best(8_000, 8) == 8


def test_beside_others_each_shard_gets_enough_to_do() -> None:
    """So that a prompt of 2,000 tokens does not take the passes of eight shards."""
    assert best(2_000, 0) == 1
    assert best(2_000, 1) == 1
    assert best(100_000, 0) == 8
    for tokens in (4_000, 10_000, 30_000):
        degree = best(tokens, 0)
        alone_s = Schemes(LARGE, 2, FAST).alone_s(tokens)
        assert degree == 1 or alone_s / degree > 0.9 * LEAST_S
    assert best(10_000, 0) < best(10_000, 8)


def test_idle_shards_are_used_beside_busy_ones() -> None:
    assert [best(3_500, idle) for idle in (0, 2, 4, 8)] == [1, 2, 4, 8]


@pytest.mark.parametrize("link_gbit", [0.1, 25.0, 100.0, 400.0])
@pytest.mark.parametrize("tokens", [64, 512, 8_000, 100_000])
def test_a_degree_that_its_links_cannot_feed_is_not_chosen(link_gbit: float, tokens: int) -> None:
    sharing = Sharing(gflops=5e5, link_gbit=link_gbit, link_latency_s=1e-5)
    schemes, degree = Schemes(LARGE, 2, sharing), best(tokens, 8, sharing)
    alone_s = schemes.alone_s(tokens)
    shared_s = schemes.choose(tokens, degree, NOTHING).predicted_s
    assert shared_s <= alone_s
    assert degree == 1 or alone_s >= 0.9 * SPARE * degree * shared_s
    assert best(100_000, 8, Sharing(gflops=5e5, link_gbit=0.1)) == 1


def test_one_keeper_of_all_kv_needs_its_link_for_that_too() -> None:
    sharing = Sharing(gflops=5e5, link_gbit=100.0, link_latency_s=1e-5)
    assert best(30_000, 8, sharing, gathers=True) < best(30_000, 8, sharing)


def test_who_asks_for_a_method_gets_all_shards() -> None:
    degrees = Degrees(Schemes(CONFIG, 2, Sharing()))
    assert degrees.best(64, 4, 0, PrefillOptions(method="ring")).degree == 4
    assert degrees.best(64, 4, 4, NOTHING).degree == 1
    assert degrees.best(1, 4, 4, NOTHING).degree == 4
