"""What shards measure of themselves and of their links, and when."""

from typing import NamedTuple

from sps2.common.config import Sharing


class Measuring(NamedTuple):
    """What is measured: nothing of what is configured."""

    speeds: bool = False
    links: bool = False


NOTHING = Measuring()


def measuring_for(sharing: Sharing) -> Measuring:
    """What is to be measured: what is not configured."""
    links = "measured" in (sharing.link_gbit, sharing.link_latency_s)
    return Measuring(sharing.gflops == "measured", links)


class Probing(NamedTuple):
    """When shards are to measure, in seconds of the clock; and which does so now, with whom.

    is_blocked: whether all that are due are busy.
    """

    due_s: dict[str, float]
    now: tuple[str, ...] = ()
    is_blocked: bool = False
