"""The rates of the scheduler's own predictions that go with a profile."""

from sps2.cli.simulator.profile import Profile, at
from sps2.common.config import Sharing
from sps2.common.model.config import ModelConfig

LENGTHS = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 100_000)
"""Prompts at which predictions are to agree, in tokens."""
STEPS = 60
"""Of the search for the time of a row."""
FASTEST = 1e6
"""Bound of `Sharing.attention_rate`, for profiles in which attention costs nothing."""


def sharing_of(profile: Profile, model: ModelConfig) -> Sharing:
    """Rates with which `Schemes` predicts about the seconds of a profile.

    `Schemes` takes the same time for every row, and for every pair of a query and a key. The time
    of a row is the one that makes the largest relative error at `LENGTHS` least.
    """
    pairs = [tokens * tokens / 2 for tokens in LENGTHS]
    wholes = [profile.prefill_s(tokens, each) for tokens, each in zip(LENGTHS, pairs, strict=True)]

    def worst(row_s: float) -> float:
        return max(
            abs((tokens * row_s + each * profile.pair_s) / whole - 1)
            for tokens, each, whole in zip(LENGTHS, pairs, wholes, strict=True)
        )

    least_s, most_s = 0.0, max(at(profile.pass_s, tokens) / tokens for tokens in LENGTHS)
    for _ in range(STEPS):  # the worst error falls, then rises
        third = (most_s - least_s) / 3
        if worst(least_s + third) < worst(most_s - third):
            most_s -= third
        else:
            least_s += third
    row_s = (least_s + most_s) / 2
    heads = model.heads * model.head_dim
    rate = 2 * model.products / max(row_s, 1e-12)
    pair_flops = 4 * heads * model.layers
    attention = pair_flops / (rate * profile.pair_s) if profile.pair_s else FASTEST
    waits_s = profile.share_s / (2 * model.layers)
    return Sharing(
        link_gbit=profile.link_gbit,
        link_latency_s=waits_s or profile.link_latency_s,
        gflops=rate / 1e9,
        attention_rate=min(attention, FASTEST),
    )
