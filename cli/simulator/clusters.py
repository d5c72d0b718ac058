"""Makes the cluster that a simulation is about, from a configuration and a profile or a GPU."""

import dataclasses
from dataclasses import dataclass
from math import inf
from pathlib import Path

from msgspec.structs import replace

from sps2.cli.simulator import hardware
from sps2.cli.simulator.models import shape_of
from sps2.cli.simulator.profile import Profile, read_profile
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.sharing import sharing_of
from sps2.cli.workload.requests import Workload
from sps2.common import config as configuration
from sps2.common.config import Cluster, Kv, Scheduler
from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.models import fingerprint, locate

ENDLESS = 1_000_000
"""Requests that may wait in a simulated cluster without a configuration of its own."""
PAGE_TOKENS = 256
LARGEST_SPAN = 1 << 17
CONTEXTS = 16
"""A pool sized by free memory has at most this many times the model's context."""


@dataclass(frozen=True)
class Wanted:
    """What a user says about a cluster; None or 0: as the configuration has it, or as is usual.

    model: as for `models.shape_of`. hardware: a card of `hardware.CARDS`; profile: a file.
    cards_per_shard: a shard is as fast, and has as much memory, as so many cards with TP; for the
        scheduler it has one process.
    link_gbit: of the network of a card; without it shards reach each other over NVLink.
    """

    model: str
    hardware: str | None = None
    profile: Path | None = None
    config: Path | None = None
    prefill: int | None = None
    decode: int | None = None
    mixed: int | None = None
    tp: int | None = None
    link_gbit: float | None = None
    cards_per_shard: int = 1


def setup_of(wanted: Wanted, policy: str | None = None) -> Setup:
    """The cluster to simulate.

    Args:
        policy: instead of the configuration's.

    Raises:
        Invalid: what is wanted contradicts itself, is unknown, or does not fit.
        OSError: a file cannot be read.
    """
    if (wanted.hardware is None) == (wanted.profile is None):
        raise Invalid(
            f"give either a profile of `spsctl profile`, or one of {', '.join(hardware.CARDS)}"
        )
    if wanted.link_gbit is not None and not 0 < wanted.link_gbit < inf:
        raise Invalid(f"--link-gbit {wanted.link_gbit:g}: give a number over 0")
    if wanted.profile is not None and wanted.tp:
        raise Invalid(
            "a profile has the times of the shards that were measured: leave out --tp, and profile "
            "a cluster with it"
        )
    base = configuration.load(wanted.config) if wanted.config else None
    return configured(wanted, base, policy)


def configured(wanted: Wanted, config: Cluster | None, policy: str | None = None) -> Setup:
    """As `setup_of`, for a configuration that was read; None: settings as are usual."""
    if wanted.tp and (wanted.mixed or (config is not None and config.mixed)):
        wanted = dataclasses.replace(wanted, tp=None, cards_per_shard=wanted.tp)
    model = shape_of(wanted.model)
    base = config or Cluster()
    if base.pp > 1:
        raise Invalid("shards with `pp` cannot be simulated: leave it out of the configuration")
    try:
        base = replace(base, **_shards(wanted, base))
        profile = _profile(wanted, model, base)
        if config is None:
            base = replace(
                base,
                scheduler=usual_scheduler(profile),
                kv=Kv(page_tokens=PAGE_TOKENS),
                sharing=sharing_of(profile, model),
            )
        if policy is not None:
            base = replace(base, scheduler=replace(base.scheduler, policy=policy))
    except ValueError as error:
        raise Invalid(str(error)) from error
    pages = _pages(wanted, model, base)
    if pages < 1:
        raise Invalid(
            f"kv.pool_tokens is {base.kv.pool_tokens}, less than a page of {base.kv.page_tokens}: "
            "enlarge it"
        )
    return Setup(base, model, hardware.ITEM_BYTES, profile, pages)


def check_fits(workload: Workload, model: ModelConfig) -> None:
    """Raises Invalid if the model's context is too short for a request."""
    most = model.max_context
    over = [t for t in workload.turns if t.prompt_tokens + t.answer_tokens > most]
    if over:
        longest = max(turn.prompt_tokens + turn.answer_tokens for turn in over)
        raise Invalid(
            f"{len(over)} of {len(workload.turns)} requests are over the model's context of "
            f"{most} tokens, one with {longest}: leave them out with --longest, or take a model "
            "with a longer context"
        )


def usual_scheduler(profile: Profile) -> Scheduler:
    """Settings of the scheduler for shards as fast as a profile's.

    A shard gets as many tokens of a prompt as it takes until two shards are nearly twice as fast as
    one; short prompts share passes as long as those cost little more than a single row; KV is
    spread when its attention takes as long as the rest of a decode step.
    """
    span = 256
    while span < LARGEST_SPAN and profile.prefill_s(2 * span, 0) < 1.8 * profile.prefill_s(span, 0):
        span *= 2
    together = 8
    while profile.prefill_s(2 * together, 0) < 2 * profile.prefill_s(1, 0):
        together *= 2
    spread = 2048
    while spread < LARGEST_SPAN and spread * profile.key_s < profile.decode_s(1, 0, False):
        spread *= 2
    return Scheduler(
        max_queue=ENDLESS,
        prefill_span_tokens=span,
        pass_tokens=4 * together,
        decode_span_tokens=spread,
    )


def _shards(wanted: Wanted, base: Cluster) -> dict[str, int]:
    if wanted.mixed:
        if wanted.prefill or wanted.decode:
            raise Invalid("mixed shards both prefill and decode: leave out --prefill and --decode")
        shards = {"prefill": 0, "decode": 0, "mixed": wanted.mixed}
    elif wanted.prefill or wanted.decode:
        prefill, decode = wanted.prefill or base.prefill, wanted.decode or base.decode
        shards = {"prefill": prefill, "decode": decode, "mixed": 0}
    else:
        shards = {"prefill": base.prefill, "decode": base.decode, "mixed": base.mixed}
    if wanted.tp and not shards["mixed"]:
        shards["tp"] = wanted.tp
    return shards


def _profile(wanted: Wanted, model: ModelConfig, base: Cluster) -> Profile:
    if wanted.hardware is not None:
        return hardware.roofline(
            model,
            wanted.hardware,
            base.tp * wanted.cards_per_shard,
            wanted.link_gbit,
            Path(wanted.model).name,
        )
    assert wanted.profile is not None
    profile = read_profile(wanted.profile)
    if profile.fingerprint and fingerprint(locate(wanted.model)) != profile.fingerprint:
        raise Invalid(
            f"{wanted.profile} is a profile of {profile.model}, whose weights are others than "
            f"those of {wanted.model}: profile this model with `spsctl profile`, or name that one "
            "with --model"
        )
    if wanted.link_gbit:
        profile = replace(profile, link_gbit=wanted.link_gbit)
    return profile


def _pages(wanted: Wanted, model: ModelConfig, base: Cluster) -> int:
    page_tokens = base.kv.page_tokens
    if base.kv.pool_tokens:
        return base.kv.pool_tokens // page_tokens
    if wanted.hardware is not None:
        tp = base.tp * wanted.cards_per_shard
        return hardware.pages(model, wanted.hardware, page_tokens, tp)
    return CONTEXTS * model.max_context // page_tokens
