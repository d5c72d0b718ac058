"""What happened in a run: of each request, and of each shard."""

from dataclasses import dataclass, field

import msgspec


class Delay(msgspec.Struct, frozen=True):
    """Why a request was not computed for a while: a `Wait.cause`, or `held back` by another."""

    cause: str
    start_s: float
    stop_s: float


class Outcome(msgspec.Struct):
    """What became of one request; times are seconds since the start of the run.

    alone_s: its TTFT on the same cluster if nothing else ran. degree: prefill shards of its first
        chunk. group: those shards. epochs: how often it was planned anew. sent_bytes: by kind, as
        `usage.sps2` has them: `kv`, `q`, `state`, `probe`, `prefix_q`, `prefix_state`,
        `deposit`, `decode_q`, `decode_state`.
    """

    request: str
    session: str
    arrived_s: float
    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int = 0
    launched_s: float | None = None
    first_s: float | None = None
    """When its first token came; None if none did."""
    ended_s: float | None = None
    error: str = ""
    alone_s: float = 0.0
    degree: int = 0
    group: tuple[str, ...] = ()
    owner: str = ""
    epochs: int = 0
    delays: list[Delay] = []
    sent_bytes: dict[str, float] = {}

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrived_s

    @property
    def e2e_s(self) -> float | None:
        return None if self.ended_s is None else self.ended_s - self.arrived_s

    @property
    def tbt_s(self) -> float | None:
        """Mean time between its tokens."""
        if self.ended_s is None or self.first_s is None or self.answer_tokens < 2:
            return None
        return (self.ended_s - self.first_s) / (self.answer_tokens - 1)

    @property
    def slowdown(self) -> float | None:
        """Its TTFT as a multiple of that on an idle cluster."""
        ttft_s = self.ttft_s
        return None if ttft_s is None or not self.alone_s else ttft_s / self.alone_s


class Activity(msgspec.Struct, frozen=True):
    """What a shard did: `kind` is `prefill`, `decode` or `lost`. request: of a prefill.

    sequences: of decode, on average.
    """

    shard: str
    kind: str
    start_s: float
    stop_s: float
    request: str = ""
    sequences: float = 0.0


@dataclass
class Run:
    """One simulated run, or one measured on a live cluster.

    policy: of the scheduler. cluster: for people, as `4 prefill + 4 decode x A100-80G`.
    shards: their names. workload, model, profile: names. rate: mean arrivals per second.
    margin: half the width of the 95 % interval of simulated times, as a share; 0 for a live run.
    """

    policy: str
    cluster: str
    shards: tuple[str, ...]
    workload: str
    model: str
    profile: str
    rate: float
    margin: float
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)
    queue: list[tuple[float, int]] = field(default_factory=list)
    """Requests that waited, at the times at which that changed."""
    steps: dict[float, float] = field(default_factory=dict)
    """Tokens by the time since the token before them, in seconds, rounded to 2 %."""
    stopped_s: float = 0.0
    """When the last request ended, in seconds since the start."""
    broken_rules: int = 0
    preemptions: int = 0
