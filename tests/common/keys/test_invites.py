"""Invitations: who may join, how often, and until when, by the inviting machine's clock alone."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from sps2.common.errors import Invalid
from sps2.common.keys.invites import Invitations
from sps2.common.keys.keyring import Keyring

HOUR = timedelta(hours=1)
STRANGER = b"9876543210"


@pytest.fixture
def invitations(tmp_path: Path) -> Invitations:
    Keyring(tmp_path / "keys").make("here")
    return Invitations(tmp_path / "keys")


def age(invitations: Invitations, name: str, by: timedelta) -> None:
    """Let time pass for one invitation."""
    found = invitations.all()
    one = found[name]
    found[name] = msgspec.structs.replace(one, created=one.created - by, expires=one.expires - by)
    invitations.path.write_bytes(msgspec.json.encode(found))


def test_a_code_is_for_so_many_machines_each_as_often_as_it_likes(
    invitations: Invitations,
) -> None:
    name, secret = invitations.add(HOUR, 2)
    for machine in ("one", "one", "two", "one"):
        invitations.use(secret, machine)
    assert invitations.all()[name].machines == ("one", "two")
    with pytest.raises(Invalid, match="used up: it was for 2 machines"):
        invitations.use(secret, "three")
    invitations.use(secret, "two")


def test_no_secret_is_kept_and_nobody_else_can_read(invitations: Invitations) -> None:
    _, secret = invitations.add(HOUR, 1)
    assert secret not in invitations.path.read_bytes()
    assert secret.hex().encode() not in invitations.path.read_bytes()
    assert stat.S_IMODE(invitations.path.stat().st_mode) == 0o600


def test_an_expired_code_says_since_when(invitations: Invitations) -> None:
    name, secret = invitations.add(HOUR, 1)
    invitations.require(secret, "one")
    age(invitations, name, timedelta(hours=1, minutes=30))
    with pytest.raises(Invalid, match="expired, 30 min ago; `spsctl invite` prints another"):
        invitations.require(secret, "one")
    age(invitations, name, timedelta(hours=2))
    with pytest.raises(Invalid, match="expired, 2 h ago"):
        invitations.use(secret, "one")


def test_a_revoked_code_is_refused_even_to_who_joined(invitations: Invitations) -> None:
    name, secret = invitations.add(HOUR, 4)
    other, another = invitations.add(HOUR, 4)
    invitations.use(secret, "one")
    invitations.revoke(name)
    with pytest.raises(Invalid, match="the code was revoked"):
        invitations.use(secret, "one")
    invitations.use(another, "one")
    with pytest.raises(Invalid, match=f"no invitation 'x'; there are: {name}, {other}"):
        invitations.revoke("x")


def test_an_unknown_code_is_refused(invitations: Invitations) -> None:
    invitations.add(HOUR, 1)
    with pytest.raises(Invalid, match="not known here any more"):
        invitations.use(STRANGER, "one")


def test_what_ended_a_day_ago_is_forgotten(invitations: Invitations) -> None:
    old, _ = invitations.add(HOUR, 1)
    age(invitations, old, timedelta(hours=26))
    new, _ = invitations.add(HOUR, 1)
    assert [*invitations.all()] == [new]
    assert invitations.all()[new].expires > datetime.now(UTC)


def test_without_a_clusters_key_nobody_is_invited(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="spsctl keys init"):
        Invitations(tmp_path / "none").add(HOUR, 1)


def test_a_time_without_a_zone_is_malformed(invitations: Invitations) -> None:
    """It cannot be compared with now."""
    _, secret = invitations.add(HOUR, 1)
    text = invitations.path.read_text()
    invitations.path.write_text(text.replace('Z"', '"').replace("+00:00", ""))
    with pytest.raises(Invalid, match="is malformed"):
        invitations.require(secret, "one")


def test_what_nests_too_deeply_is_malformed(invitations: Invitations) -> None:
    invitations.add(HOUR, 1)
    invitations.path.write_text('{"a": {"b": ' + "[" * 20_000)
    with pytest.raises(Invalid, match="is malformed"):
        invitations.all()
