"""CURVE on the sockets of the bus: what dials, what listens, and whom a listening socket takes."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import zmq
import zmq.asyncio
from zmq.utils import z85

from sps2.common import keys
from sps2.common.config import Bus
from sps2.common.errors import Invalid
from sps2.common.keys import Clients, Key
from sps2.common.keys.reload import Reloaded

Audience = Literal["services", "clients"]
"""Whom a socket is for: services of the cluster, or its clients as well."""

ASKED_AT = "inproc://zeromq.zap.01"
BROKEN = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
HANDSHAKE_S = 5.0
"""For how long a connection keeps a descriptor that does not say who it is."""
SILENCE_S = 10.0
"""Between two warnings: whoever is turned away comes again and again."""
ATTEMPTS = 3
"""Broken handshakes in a row that are no accident."""

log = logging.getLogger(__name__)


def dial(socket: zmq.Socket[Any], key: Key | None) -> None:
    """Have `socket` prove who it is, and accept only the cluster at the other end."""
    if key is not None:
        socket.curve_publickey = key.public.encode()
        socket.curve_secretkey = key.secret.encode()
        socket.curve_serverkey = key.cluster.encode()


class Authenticator:
    """Decides who may connect to the listening sockets of one context; without keys, anybody.

    libzmq asks by ZAP (RFC 27). pyzmq's AsyncioAuthenticator answers too, but after its `stop` no
    other works on the same loop: it leaves a closed descriptor with the loop.

    Args:
        counters: "bad_keys" counts who was turned away, or was let in once and is not any more.

    Raises:
        Invalid: the bus's keys cannot be read, or are no service's.
    """

    def __init__(self, bus: Bus, counters: Counter[str]) -> None:
        self._counters = counters
        self._silent_until_s = 0.0
        self._asked: zmq.asyncio.Socket | None = None
        self._key = keys.cluster_key(bus)
        if self._key is not None:
            self._clients = Reloaded(keys.beside(bus, keys.CLIENTS), Clients, {})

    def attend(self, context: zmq.Context[Any]) -> None:
        """Take over `context`, which has no listening sockets yet."""
        if self._key is not None:
            self._asked = zmq.asyncio.Socket(context, zmq.REP)
            self._asked.linger = 0
            self._asked.bind(ASKED_AT)

    def guard(self, socket: zmq.Socket[Any], audience: Audience) -> None:
        """Have `socket`, not yet bound, take only `audience`, and nobody who says nothing."""
        socket.handshake_ivl = round(HANDSHAKE_S * 1000)
        if self._key is not None:
            socket.curve_server = True
            socket.curve_secretkey = self._key.secret.encode()
            socket.zap_domain = audience.encode()
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody, should nobody answer

    async def run(self) -> None:
        """Answer libzmq; ends at once where there are no keys."""
        while self._asked is not None:
            (
                version,
                number,
                domain,
                address,
                _,
                mechanism,
                *proof,
            ) = await self._asked.recv_multipart()
            user = z85.encode(proof[0]).decode() if mechanism == b"CURVE" and proof else ""
            answer = (b"200", b"OK") if self.takes(user, domain.decode()) else (b"400", b"no entry")
            if answer[0] != b"200":
                self._count(address.decode())
            await self._asked.send_multipart([version, number, *answer, user.encode(), b""])

    def takes(self, user: str, audience: str) -> bool:
        """Whether `user`, a public key, may be where `audience` may."""
        assert self._key is not None
        return user == self._key.public or (audience == "clients" and user in self.clients())

    def clients(self) -> frozenset[str]:
        """Public keys of the clients that may connect now."""
        return frozenset(client.public for client in self._clients.now().values())

    def admits(self, frames: Sequence[zmq.Frame], audience: Audience) -> bool:
        """Whether a message is from somebody who may send one now.

        Services stay for as long as their connection; a client may be revoked.
        """
        if self._key is None or audience == "services":
            return True
        if self.takes(str(frames[-1].get("User-Id")), audience):
            return True
        self._counters["bad_keys"] += 1
        return False

    def _count(self, address: str) -> None:
        self._counters["bad_keys"] += 1
        if time.monotonic() > self._silent_until_s:
            self._silent_until_s = time.monotonic() + SILENCE_S
            log.warning("%s was turned away: its key is not known here", address)

    def close(self) -> None:
        """Before the context ends; `run` must not be running."""
        if self._asked is not None:
            self._asked.close(0)


def refusal(event: int, name: str, key: Key | None, attempts: int) -> Invalid | None:
    """Why a handshake that ended with a monitor's `event` fails, where that is for good."""
    if event == zmq.Event.HANDSHAKE_FAILED_AUTH and key is not None:
        return Invalid(
            f"{name} does not take the key of {key.kind} {key.name}: it was revoked, or made for "
            "something else (`spsctl keys client add NAME` makes a client's)"
        )
    if event not in BROKEN or attempts < ATTEMPTS:
        return None
    if key is None:
        return Invalid(
            f"{name} breaks the handshake off: its cluster has keys and this side has none; name "
            "yours with [bus] keys or SPS2_KEYS"
        )
    return Invalid(
        f"{name} breaks the handshake off: it has no keys, or those of another cluster than "
        f"this side's {key.kind} key {key.name}"
    )
