"""Before services work together: one version, the same messages, clocks that agree."""

import logging
import time
from importlib.metadata import version
from typing import NamedTuple

from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid
from sps2.common.messages import Greet, Greeted
from sps2.common.messages.schema import schema_hash

VERSION = version("sps2")
APART_S = 1.0
"""Clocks that differ by more are warned of."""

log = logging.getLogger(__name__)


class Clocks(NamedTuple):
    """By how many seconds the clocks of a peer are ahead of those here.

    They were read between question and answer: what they are ahead is known to `error_s`, half of
    the time that this took.
    """

    wall_s: float
    monotonic_s: float
    error_s: float


async def compare(peer: Peer, service: str, deadline_s: float) -> Clocks:
    """Say who asks, and compare clocks.

    Raises:
        Invalid: the peer is of another version; the message names both.
        ServiceError: as `Peer.call`.
    """
    asked_at_s, asked_s = time.time(), time.monotonic()
    told = await peer.call(Greet(service, VERSION, schema_hash()), deadline_s)
    error_s = (time.monotonic() - asked_s) / 2
    return Clocks(told.at_s - asked_at_s - error_s, told.monotonic_s - asked_s - error_s, error_s)


async def greet(peer: Peer, service: str, deadline_s: float) -> float:
    """As `compare`, and warn of clocks apart; how far the peer's is behind this one, in seconds."""
    clocks = await compare(peer, service, deadline_s)
    if odd := apart(peer.name, clocks.wall_s, clocks.error_s):
        log.warning("%s", odd)
    return -clocks.wall_s


def apart(who: str, ahead_s: float, error_s: float) -> str:
    """What is to be said of a clock that is so far ahead of the one here; nothing if they agree."""
    if abs(ahead_s) <= APART_S + error_s:
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of {who} is {abs(ahead_s):.1f} s {way} the one here: times in logs, traces and "
        "telemetry do not fit together; set both by NTP"
    )


def greeted(service: str, request: Greet) -> Greeted:
    """What `service` answers. Raises Invalid if whoever comes is of another version."""
    if (request.version, request.schema) != (VERSION, schema_hash()):
        refusal = (
            f"{request.service} is SPS2 {request.version} (messages {request.schema or 'unknown'}) "
            f"and {service} is {VERSION} ({schema_hash()}): install one version on every host"
        )
        log.warning("%s", refusal)
        raise Invalid(refusal)
    return Greeted(time.time(), time.monotonic())
