"""The configurations that a plan chooses from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path

import msgspec

from sps2.cli.simulator.clusters import LARGEST_SPAN, Wanted, setup_of
from sps2.cli.simulator.models import shape_of
from sps2.cli.simulator.setup import Setup
from sps2.common.errors import Invalid
from sps2.common.model.share import share_of

CHUNKS = (0, 2048, 8192)
"""Values of `scheduler.chunk_tokens`; 0: prompts are computed whole."""
SPANS = (1.0, 0.25, 4.0)
"""Values of `scheduler.prefill_span_tokens`, by the usual one."""


@dataclass(frozen=True)
class Pool:
    """Cards of one kind.

    name: of a card, or of a profile's machine. cards: how many there may be; with a profile,
    shards as it was measured. price: of a card in an hour, in US dollars; None: not known.
    """

    name: str
    cards: int
    price: float | None = None
    watts: float | None = None
    profile: Path | None = None


@dataclass(frozen=True)
class Candidate:
    """One configuration. span_tokens, chunk_tokens: as in `[scheduler]`."""

    pool: Pool
    prefill: int
    decode: int
    mixed: int
    tp: int
    span_tokens: int
    chunk_tokens: int
    policy: str

    @property
    def cards(self) -> int:
        return (self.prefill + self.decode + self.mixed) * self.tp

    @property
    def prefillers(self) -> int:
        return self.prefill + self.mixed

    @property
    def shape(self) -> tuple[str, int, int, int, int]:
        """Without what only the scheduler does."""
        return self.pool.name, self.tp, self.prefill, self.decode, self.mixed

    @property
    def price(self) -> float | None:
        return None if self.pool.price is None else self.pool.price * self.cards

    @property
    def watts(self) -> float | None:
        return None if self.pool.watts is None else self.pool.watts * self.cards

    @property
    def shards(self) -> str:
        """As `4 prefill + 2 decode`."""
        counts = {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}
        return " + ".join(f"{count} {role}" for role, count in counts.items() if count)

    def degree(self, tokens: int) -> int:
        """The SP degree of a prompt on an idle cluster."""
        return max(1, min(self.prefillers, ceil(tokens / self.span_tokens)))

    def with_settings_of(self, other: "Candidate") -> "Candidate":
        """The same shape, with another's settings of the scheduler."""
        return replace(
            self,
            span_tokens=other.span_tokens,
            chunk_tokens=other.chunk_tokens,
            policy=other.policy,
        )

    @property
    def in_words(self) -> str:
        chunks = f", chunks of {self.chunk_tokens:,}" if self.chunk_tokens else ""
        span = f", SP from {self.span_tokens:,} tokens" if self.is_parallel else ""
        tp = f", TP {self.tp}" if self.tp > 1 else ""
        return f"{self.shards} on {self.cards} x {self.pool.name}{tp}{span}{chunks}, {self.policy}"

    @property
    def is_parallel(self) -> bool:
        """Whether prompts may have an SP degree over 1."""
        return self.prefillers > 1 and self.span_tokens < LARGEST_SPAN


class Setups:
    """Makes what the simulator needs of a candidate.

    Args:
        model: as for `models.shape_of`. link_gbit: as for `Wanted`.
    """

    def __init__(self, model: str, link_gbit: float | None = None) -> None:
        self.name = model
        self.model = shape_of(model)
        self._link_gbit = link_gbit
        self._base = cache(self._made)

    def usual(self, pool: Pool, tp: int) -> Setup:
        """With one shard of each kind. Raises Invalid if the model does not fit on `tp` cards."""
        found = self._base(pool, tp)
        if isinstance(found, Invalid):
            raise found
        return found

    def of(self, candidate: Candidate) -> Setup:
        """Raises Invalid if the model does not fit."""
        base = self.usual(candidate.pool, candidate.tp)
        scheduler = msgspec.structs.replace(
            base.config.scheduler,
            prefill_span_tokens=candidate.span_tokens,
            chunk_tokens=candidate.chunk_tokens,
            policy=candidate.policy,
        )
        config = msgspec.structs.replace(
            base.config,
            prefill=candidate.prefill,
            decode=candidate.decode,
            mixed=candidate.mixed,
            scheduler=scheduler,
        )
        return replace(base, config=config)

    def _made(self, pool: Pool, tp: int) -> Setup | Invalid:
        shards = Wanted(self.name, prefill=1, decode=1, link_gbit=self._link_gbit)
        if pool.profile:
            return setup_of(replace(shards, profile=pool.profile))
        try:
            return setup_of(replace(shards, hardware=pool.name, tp=tp))
        except Invalid as error:
            return error

    def degrees(self, pool: Pool) -> list[int]:
        """TP degrees into which the model can be split. A profile is of one degree."""
        if pool.profile:
            return [1]
        found = []
        for tp in range(1, min(pool.cards, self.model.kv_heads) + 1):
            try:
                share_of(self.model, tp)
            except Invalid:
                continue
            found.append(tp)
        return found


def shapes(pool: Pool, degrees: Sequence[int], span: int, policy: str) -> Iterator[Candidate]:
    """Every number of shards that the cards suffice for."""
    for tp in degrees:
        most = pool.cards // tp
        for prefill in range(1, most):
            for decode in range(1, most - prefill + 1):
                yield Candidate(pool, prefill, decode, 0, tp, span, 0, policy)
        if tp == 1:
            for mixed in range(1, most + 1):
                yield Candidate(pool, 0, 0, mixed, 1, span, 0, policy)


def variants(candidate: Candidate, longest: int, policies: Sequence[str]) -> Iterator[Candidate]:
    """Candidates of the same shape whose scheduler has other settings.

    Args:
        longest: prompt of the workload: settings that make no difference to it are left out.
    """
    lengths = [longest >> shift for shift in range(8)]
    known = set[tuple[object, ...]]()
    spans = [max(64, int(candidate.span_tokens * factor)) for factor in SPANS]
    for policy in (candidate.policy, *policies):
        for chunk in CHUNKS:
            for span in (*spans, LARGEST_SPAN):
                made = replace(candidate, span_tokens=span, chunk_tokens=chunk, policy=policy)
                same = (policy, chunk, *(made.degree(tokens) for tokens in lengths))
                if chunk < longest and same not in known:
                    known.add(same)
                    if made != candidate:
                        yield made
