"""How a prefill group works together."""

from typing import Literal

from sps2.common.messages.base import Struct

Setting = Literal["exact", "balanced", "fast"]
"""How much attention may be left out."""
ExactMethod = Literal["ring", "gather", "ulysses", "usp", "pass_q"]
Method = ExactMethod | Literal["csa", "strided", "star"]
"""How a prefill group shares its attention; see `services/prefill`."""
KvTransferDtype = Literal["auto", "int8"]


class Selection(Struct, frozen=True):
    """What CSA moves of the keys and values that one rank has and a later one could use.

    An owner keeps a block for a consumer and KV head if its importance is at least `drop`: the
    share of attention that it gets from the consumer's probes. Below `fine` it travels in 4 bits.
    """

    drop: tuple[float, ...]
    """By layer."""
    fine: tuple[float, ...]
    """By layer."""
    probes: int = 4
    """Query rows of 128 that are probed."""
    suffix: int = 64
    """Last rows of the prompt, all of which are probed."""
    rounds: Literal[1, 2] = 1
    """1: an owner normalises by what it and the consumer see, 2: by all that the probes see."""
    held_out: float = 0.05
    """Mean mass that held-out probes may lose before a KV head fetches everything."""
    budget: float | None = None
    """HiRE's selector instead of `drop`: each owner sends this share of its blocks, the best."""


class Scheme(Struct, frozen=True):
    """How a prefill group works together.

    Args:
        ulysses: ranks that split heads between them, a divisor of the group; only USP has a choice.
        kv_transfer_dtype: of keys and values between prefill shards; auto: the model's dtype.
        selection: of CSA.
        pipelined: transfers run beside arithmetic; without it, one after the other.
    """

    method: Method = "ring"
    ulysses: int = 1
    kv_transfer_dtype: KvTransferDtype = "auto"
    selection: Selection | None = None
    pipelined: bool = True


class PrefillOptions(Struct, frozen=True):
    """What a request asks of its prefill; None leaves it to the cluster."""

    sp_degree: int | None = None
    """Prefill shards."""
    attention: Setting | None = None
    method: ExactMethod | None = None
    kv_transfer_dtype: KvTransferDtype | None = None
    pipelined: bool | None = None


class Exchanged(Struct, frozen=True):
    """What a rank's exchange with its group took; seconds are of wall-clock time.

    sent_bytes: payload by purpose: "kv", "q", "state", "probe"; and of what a prefix takes,
        "prefix_q", and "prefix_state" that came.
    compute_s: while something was computed; attention_s: of these, for attention.
    exchange_s: while a transfer was awaited or under way. hidden_s: of these, while computing.
    blocks, kept_blocks: that CSA could have moved to this rank, and moved; per KV head and layer.
    lost: by layer, the mean mass that held-out probes lost; empty but for CSA.
    """

    sent_bytes: dict[str, int]
    compute_s: float
    attention_s: float
    exchange_s: float
    hidden_s: float
    blocks: int = 0
    kept_blocks: int = 0
    lost: tuple[float, ...] = ()
