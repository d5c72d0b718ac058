"""What predictions take for granted of a cluster: its fastest shard, and its best link."""

from typing import Literal, NamedTuple

from sps2.common.config import Sharing
from sps2.common.messages import PrefillOptions

FAST_GBIT = 1.0
"""From such links on nothing is packed losslessly, unless asked for: it would save little more time
than it takes, where transfers delay a prefill at all."""


class Hardware(NamedTuple):
    """The rates of the fastest shard and of the best link.

    gflops: GFLOP/s of matrix products. link_gbit: Gbit/s, each way. link_latency_s: seconds from
    shard to shard.
    """

    gflops: float
    link_gbit: float
    link_latency_s: float


class Known(NamedTuple):
    """What was measured of them; None where nothing was."""

    gflops: float | None = None
    link_gbit: float | None = None
    link_latency_s: float | None = None


class Wire(NamedTuple):
    """The link of a shard, relative to the best one.

    rate: share of its rate. lag: its latency, as a multiple.
    """

    rate: float = 1.0
    lag: float = 1.0

    def is_within(self, worst: "Wire") -> bool:
        """Whether it is no worse than another one in either."""
        return self.rate >= worst.rate and self.lag <= worst.lag


UNKNOWN = Known()
WORST = Wire(0.0, float("inf"))
"""Every link is within it."""
USUAL = Hardware(300.0, 10.0, 0.0002)
"""Where nothing is configured, and nothing was measured yet."""


def hardware_of(sharing: Sharing, known: Known = UNKNOWN) -> Hardware:
    """What is configured, else what was measured, else what is usual."""
    given = sharing.gflops, sharing.link_gbit, sharing.link_latency_s
    return Hardware(*map(_first, given, known, USUAL))


def lossless_on(
    gbit: float, sharing: Sharing, options: PrefillOptions, itemsize: int
) -> float | None:
    """`Scheme.lossless` on links of this rate: a shard knows only how fast it packs."""
    chosen = sharing.lossless
    if options.lossless is not None:
        chosen = "on" if options.lossless else "off"
    if itemsize != 2 or chosen == "off":
        return None
    if chosen == "on":
        return 0.0
    return gbit if gbit < FAST_GBIT else None


def _first(given: float | Literal["measured"], known: float | None, usual: float) -> float:
    if not isinstance(given, str):
        return given
    return usual if known is None else known
