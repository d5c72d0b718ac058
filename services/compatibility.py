"""Checks before services work together: same messages, versions that fit, clocks that agree."""

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
"""A greater difference between two clocks is logged as a warning."""

log = logging.getLogger(__name__)


class Clocks(NamedTuple):
    """How many seconds the clocks of a peer are ahead of those here.

    The peer reads them between request and answer, so the offset is known to within `error_s`: half
    of the round trip.
    """

    wall_s: float
    monotonic_s: float
    error_s: float


async def compare(peer: Peer, service: str, deadline_s: float) -> Clocks:
    """Introduce this service to a peer, and compare their clocks.

    Raises:
        Invalid: the peer's version does not fit; the message names both.
        ServiceError: see `Peer.call`.
    """
    sent_at_s, sent_s = time.time(), time.monotonic()
    answer = await peer.call(Greet(service, VERSION, schema_hash()), deadline_s)
    error_s = (time.monotonic() - sent_s) / 2
    return Clocks(answer.at_s - sent_at_s - error_s, answer.monotonic_s - sent_s - error_s, error_s)


async def greet(peer: Peer, service: str, deadline_s: float) -> float:
    """Like `compare`, and warns if clocks disagree; returns how far the peer is behind, in s."""
    clocks = await compare(peer, service, deadline_s)
    if odd := apart(peer.name, clocks.wall_s, clocks.error_s):
        log.warning("%s", odd)
    return -clocks.wall_s


def apart(who: str, ahead_s: float, error_s: float) -> str:
    """A warning about a clock that is `ahead_s` ahead of the one here; empty if they agree."""
    if abs(ahead_s) <= APART_S + error_s:
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of {who} is {abs(ahead_s):.1f} s {way} the one here: times in logs, traces and "
        "telemetry do not fit together; set both by NTP"
    )


def fits(version: str, schema: str) -> bool:
    """Whether services of another version work together with those of this one.

    They do if messages and the version's first two numbers are the same, so that a cluster can be
    upgraded process by process.
    """
    return (_series(version), schema) == (_series(VERSION), schema_hash())


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def greeted(service: str, request: Greet) -> Greeted:
    """The answer of `service` to a greeting. Raises Invalid if the caller does not fit."""
    if not fits(request.version, request.schema):
        refusal = (
            f"{request.service} is SPS2 {request.version} (messages {request.schema or 'unknown'}) "
            f"and {service} is {VERSION} ({schema_hash()}): install one version on every host"
        )
        log.warning("%s", refusal)
        raise Invalid(refusal)
    return Greeted(time.time(), time.monotonic())
