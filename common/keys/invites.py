"""The invitations to a cluster: who may still join, kept beside the cluster's key."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sps2.common.errors import Invalid
from sps2.common.keys.files import (
    CLUSTER,
    INVITES,
    Text,
    Time,
    read,
    read_private,
    write_private,
)
from sps2.common.keys.join_code import SECRET_BYTES, pair_of
from sps2.common.models.file_lock import alone_in
from sps2.common.validation import MALFORMED

KEPT = timedelta(days=1)
"""How long an invitation is kept that is over, to say so to whoever still has its code."""


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One invitation. Its code's secret is not stored."""

    public: Text
    """The key by which a joining machine proves that it has the code."""
    created: Time
    expires: Time
    """By the clock of the machine that invites; that of the joining one does not matter."""
    joins: Annotated[int, Meta(ge=1)]
    """How many machines may join."""
    machines: tuple[str, ...] = ()
    """The ids of those that did; they may come again with the code."""
    revoked: Time | None = None

    def obstacle(self, now: datetime, machine: str = "") -> str:
        """Why `machine` cannot join with it, in words; empty if it can."""
        if self.revoked is not None:
            return "the code was revoked"
        if now >= self.expires:
            return f"the code has expired, {_ago(now - self.expires)} ago"
        if machine not in self.machines and len(self.machines) >= self.joins:
            return f"the code is used up: it was for {self.joins} machine{'s'[: self.joins - 1]}"
        return ""


Invites = dict[str, Invite]
"""Invitations by their names."""


class Invitations:
    """The invitations in the folder of a cluster's key; several processes may change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.path = self.folder / INVITES

    def all(self) -> Invites:
        """All invitations, those included that ended lately. Raises Invalid if unreadable."""
        try:
            return msgspec.json.decode(read_private(self.path), type=Invites)
        except FileNotFoundError:
            return {}
        except MALFORMED as error:
            raise Invalid(f"{self.path} is malformed: {error}") from error

    def add(self, lifetime: timedelta, joins: int) -> tuple[str, bytes]:
        """Invite; returns the invitation's name and its code's secret.

        Raises:
            Invalid: there is no cluster key in the folder.
        """
        read(self.folder / CLUSTER)
        secret, now = secrets.token_bytes(SECRET_BYTES), datetime.now(UTC)
        with self._changing() as invites:
            name = _new_name(invites)
            invites[name] = Invite(pair_of(secret)[0], now, now + lifetime, joins)
        return name, secret

    def require(self, secret: bytes, machine: str) -> str:
        """The name of a code's invitation, with which a machine may join now.

        Raises:
            Invalid: the code is unknown, expired, used up or revoked.
        """
        return _usable(self.all(), secret, machine)

    def use(self, secret: bytes, machine: str) -> None:
        """Record that a machine joined with the secret of a code. Raises Invalid as `require`."""
        with self._changing() as invites:
            name = _usable(invites, secret, machine)
            machines = tuple(dict.fromkeys((*invites[name].machines, machine)))
            invites[name] = msgspec.structs.replace(invites[name], machines=machines)

    def revoke(self, name: str) -> None:
        """Let nobody join any more with a code. Raises Invalid if there is no such invitation."""
        with self._changing() as invites:
            if name not in invites:
                there = ", ".join(invites) or "none"
                raise Invalid(f"there is no invitation {name!r}; there are: {there}")
            invites[name] = msgspec.structs.replace(invites[name], revoked=datetime.now(UTC))

    @contextmanager
    def _changing(self) -> Iterator[Invites]:
        """The invitations, written back after the block; nobody else changes them meanwhile."""
        with alone_in(self.folder):
            invites = self.all()
            yield invites
            since = datetime.now(UTC) - KEPT
            lasting = {name: each for name, each in invites.items() if each.expires > since}
            write_private(self.path, msgspec.json.format(msgspec.json.encode(lasting)) + b"\n")


def _usable(invites: Invites, secret: bytes, machine: str) -> str:
    public = pair_of(secret)[0]
    for name, invite in invites.items():
        if invite.public == public:
            if why := invite.obstacle(datetime.now(UTC), machine):
                raise Invalid(f"{why}; `spsctl invite` prints another, where the cluster is")
            return name
    raise Invalid("the code is not known here any more; `spsctl invite` prints another")


def _new_name(invites: Invites) -> str:
    while (name := secrets.token_hex(2)) in invites:
        pass
    return name


def _ago(past: timedelta) -> str:
    minutes = round(past.total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
