"""Before services work together: they must be of one version, and their clocks should agree."""

import logging
import time
from importlib.metadata import version

from sps2.common.errors import Invalid
from sps2.common.messages import Greet, Greeted
from sps2.common.rpc import Peer

VERSION = version("sps2")
APART_S = 1.0
"""Clocks that differ by more are warned of: times in traces and telemetry do not fit together."""

log = logging.getLogger(__name__)


async def greet(peer: Peer, service: str, deadline_s: float) -> float:
    """Say who comes; how far the peer's clock is behind this one, in seconds.

    Raises:
        Invalid: the peer is of another version; the message names both.
        ServiceError: as `Peer.call`.
    """
    asked_s, since_s = time.time(), time.monotonic()
    told = await peer.call(Greet(service, VERSION), deadline_s)
    took_s = time.monotonic() - since_s
    ahead_s = asked_s + took_s / 2 - told.at_s
    if abs(ahead_s) > APART_S + took_s / 2:
        way = "ahead of" if ahead_s > 0 else "behind"
        log.warning(
            "the clock here is %.1f s %s that of %s: times in traces and telemetry do not fit "
            "together; set both by NTP",
            abs(ahead_s),
            way,
            peer.name,
        )
    return ahead_s


def greeted(service: str, request: Greet) -> Greeted:
    """What `service` answers. Raises Invalid if whoever comes is of another version."""
    if request.version != VERSION:
        refusal = (
            f"{request.service} is SPS2 {request.version} and {service} is {VERSION}: install one "
            "version on every host"
        )
        log.warning("%s", refusal)
        raise Invalid(refusal)
    return Greeted(time.time())
