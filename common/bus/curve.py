"""CURVE on the sockets of the bus: dialling, listening, and whom a listening socket accepts."""

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
from sps2.common.keys.invites import Invites
from sps2.common.keys.reload import Reloaded

Audience = Literal["services", "clients", "invited"]
"""Who may connect to a socket: services of the cluster; its clients as well; or, beside services,
machines that were invited, even if their invitation is over, so that they can be told."""

ZAP_ADDRESS = "inproc://zeromq.zap.01"
BROKEN = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
HANDSHAKE_S = 5.0
"""How long a connection may take to authenticate before it is closed."""
SILENCE_S = 10.0
"""Pause between two warnings: a client that is turned away retries again and again."""
ATTEMPTS = 3
"""This many broken handshakes in a row count as a refusal."""

log = logging.getLogger(__name__)


def dial(socket: zmq.Socket[Any], key: Key | None) -> None:
    """Have `socket` authenticate itself, and accept only this cluster at the other end."""
    if key is not None:
        socket.curve_publickey = key.public.encode()
        socket.curve_secretkey = key.secret.encode()
        socket.curve_serverkey = key.cluster.encode()


class Authenticator:
    """Decides who may connect to the listening sockets of a context; without keys, anybody.

    libzmq sends its questions by ZAP (RFC 27). pyzmq's AsyncioAuthenticator can answer them too,
    but after its `stop` none works on the same loop: it leaves a closed descriptor in the loop.

    Args:
        counters: "bad_keys" counts refused connections, and messages of revoked clients.

    Raises:
        Invalid: the bus's keys cannot be read, or are not a service's.
    """

    def __init__(self, bus: Bus, counters: Counter[str]) -> None:
        self._counters = counters
        self._silent_until_s = 0.0
        self._zap: zmq.asyncio.Socket | None = None
        self._key = keys.cluster_key(bus)
        if self._key is not None:
            self._clients = Reloaded(keys.beside(bus, keys.CLIENTS), Clients, {})
            self._invites = Reloaded(keys.beside(bus, keys.INVITES), Invites, {})

    def attend(self, context: zmq.Context[Any]) -> None:
        """Authenticate for `context`, which must not have listening sockets yet."""
        if self._key is not None:
            self._zap = zmq.asyncio.Socket(context, zmq.REP)
            self._zap.linger = 0
            self._zap.bind(ZAP_ADDRESS)

    def guard(self, socket: zmq.Socket[Any], audience: Audience) -> None:
        """Have `socket`, not yet bound, accept only `audience`, and drop silent connections."""
        socket.handshake_ivl = round(HANDSHAKE_S * 1000)
        if self._key is not None:
            socket.curve_server = True
            socket.curve_secretkey = self._key.secret.encode()
            socket.zap_domain = audience.encode()
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # if nobody answers, nobody is let in

    async def run(self) -> None:
        """Answer libzmq's ZAP requests; returns at once where there are no keys."""
        while self._zap is not None:
            (
                version,
                number,
                domain,
                address,
                _,
                mechanism,
                *proof,
            ) = await self._zap.recv_multipart()
            user = z85.encode(proof[0]).decode() if mechanism == b"CURVE" and proof else ""
            answer = (b"200", b"OK") if self.takes(user, domain.decode()) else (b"400", b"no entry")
            if answer[0] != b"200":
                self._count(address.decode())
            await self._zap.send_multipart([version, number, *answer, user.encode(), b""])

    def takes(self, user: str, audience: str) -> bool:
        """Whether the public key `user` belongs to `audience`."""
        assert self._key is not None
        if user == self._key.public:
            return True
        admitted = {"clients": self.clients, "invited": self.invited}.get(audience)
        return admitted is not None and user in admitted()

    def clients(self) -> frozenset[str]:
        """Public keys of the clients that may connect now."""
        return frozenset(client.public for client in self._clients.now().values())

    def invited(self) -> frozenset[str]:
        """Public keys of the machines that were invited lately."""
        return frozenset(invite.public for invite in self._invites.now().values())

    def admits(self, frames: Sequence[zmq.Frame], audience: Audience) -> bool:
        """Whether the sender of a message may still send.

        A service may as long as its connection lasts; a client's key may be revoked meanwhile.
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
        """Close the ZAP socket, before the context ends; `run` must not be running."""
        if self._zap is not None:
            self._zap.close(0)


def refusal(event: int, name: str, key: Key | None, attempts: int) -> Invalid | None:
    """Why a handshake failed with a monitor's `event`; None if a retry may succeed."""
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
