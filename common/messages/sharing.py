"""The methods by which a prefill group shares attention, and their figures."""

from typing import Literal

from sps2.common.messages.base import Struct

Setting = Literal["exact", "balanced", "fast"]
"""How much attention may be left out."""
ExactMethod = Literal["ring", "gather", "ulysses", "usp", "pass_q"]
Method = ExactMethod | Literal["csa", "strided", "star"]
"""How a prefill group shares its attention; see `services/prefill`."""
KvTransferDtype = Literal["auto", "int8"]


class Selection(Struct, frozen=True):
    """The KV blocks that CSA moves from the rank that has them (owner) to later ranks (consumers).

    An owner sends a block to a consumer and KV head if its importance is at least `drop`. The
    importance is the share of attention that the consumer's probes give it, in units of the share
    that it would have if all tokens got the same.
    """

    drop: tuple[float, ...]
    """Threshold of each layer."""
    fine: tuple[float, ...]
    """Threshold of each layer: blocks below it are sent in 4 bits, others in 8."""
    steps: tuple[float, float] | None = None
    """Of keys, in nats of a score, and of values, in sizes of their token: blocks are rounded to
    multiples of these, finer ones the more important they are, and entropy-coded. None: blocks are
    sent in 4 and 8 bits."""
    probes: int = 4
    """Query rows of 128 that are probed."""
    suffix: int = 64
    """Number of last rows of the prompt that are all probed."""
    rounds: Literal[1, 2] = 1
    """1: an owner normalises over its own and the consumer's keys; 2: over all that probes see."""
    held_out: float = 0.05
    """Mean mass that held-out probes may lose, to all owners together, before a KV head fetches
    everything."""
    budget: float | None = None
    """HiRE's selector instead of `drop`: each owner sends this share of its blocks, best first."""


class Scheme(Struct, frozen=True):
    """How a prefill group works together.

    Args:
        ulysses: ranks that split heads between them, a divisor of the group; free only for USP.
        kv_transfer_dtype: of keys and values between prefill shards; auto: the model's dtype.
        selection: of CSA.
        pipelined: transfers run beside arithmetic; without it, one after the other.
        lossless: Gbit/s of the links, if bfloat16 tensors are packed losslessly where a shard finds
            that faster on such links; 0: wherever it can; None: nowhere.
    """

    method: Method = "ring"
    ulysses: int = 1
    kv_transfer_dtype: KvTransferDtype = "auto"
    selection: Selection | None = None
    pipelined: bool = True
    lossless: float | None = None


class PrefillOptions(Struct, frozen=True):
    """Options of a request for its prefill; None leaves the choice to the cluster."""

    sp_degree: int | None = None
    """Number of prefill shards to use."""
    attention: Setting | None = None
    method: ExactMethod | None = None
    kv_transfer_dtype: KvTransferDtype | None = None
    pipelined: bool | None = None
    lossless: bool | None = None


class Exchanged(Struct, frozen=True):
    """Figures of a rank's exchange with its group; seconds are of wall-clock time.

    sent_bytes: payload by purpose: "kv", "q", "state", "probe"; for a prefix "prefix_q", and
        "prefix_state", which is received.
    compute_s: while something was computed; attention_s: of these, for attention.
    exchange_s: while a transfer was awaited or under way. hidden_s: of these, while computing.
    blocks, kept_blocks: that CSA could have moved to this rank, and moved; per KV head and layer.
    lost: by layer, the mean mass that held-out probes lost; empty but for CSA.
    saved_bytes: that lossless packing made of what was sent.
    """

    sent_bytes: dict[str, int]
    compute_s: float
    attention_s: float
    exchange_s: float
    hidden_s: float
    blocks: int = 0
    kept_blocks: int = 0
    lost: tuple[float, ...] = ()
    saved_bytes: int = 0
