"""Key files and the folder that they are in: made private, and refused when they are not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sps2.common import config, keys
from sps2.common.config import Bus
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    made = Keyring(tmp_path / "keys")
    made.make("here")
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_is_private_and_can_be_read_back(ring: Keyring, tmp_path: Path) -> None:
    alice = tmp_path / "alice.key"
    made = ring.add_client("alice", alice)
    assert mode(ring.folder) == 0o700
    assert {mode(path) for path in [*ring.folder.iterdir(), alice]} == {0o600}
    cluster = keys.cluster_key(Bus(keys=str(ring.folder)))
    assert cluster == keys.of(Bus(keys=str(ring.cluster)))
    assert cluster is not None
    assert keys.of(Bus(keys=str(alice))) == made
    assert (made.kind, made.name, made.cluster) == ("client", "alice", cluster.public)
    assert ring.clients()["alice"].public == made.public
    assert keys.of(Bus()) is None


def test_a_secret_is_not_shown(ring: Keyring) -> None:
    key = keys.read(ring.cluster)
    assert key.secret not in f"{key} {key!r}"


def damage(path: Path) -> None:
    text = path.read_text()
    secret = keys.read(path).secret
    path.write_text(text.replace(secret, secret[5:] + secret[:5]))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda ring: ring.cluster.chmod(0o644), "chmod 600"),
        (lambda ring: ring.cluster.chmod(0o620), "chmod 600"),
        (lambda ring: ring.folder.chmod(0o755), "chmod 700"),
        (lambda ring: ring.cluster.unlink(), "spsctl keys init"),
        (lambda ring: ring.cluster.write_text("{}"), "is no key file of SPS2"),
        (lambda ring: ring.cluster.write_bytes(b"\xff\xfe"), "is no key file of SPS2"),
        (lambda ring: damage(ring.cluster), "is damaged"),
    ],
)
def test_a_bad_key_is_refused(ring: Keyring, spoil: Callable[[Keyring], None], told: str) -> None:
    spoil(ring)
    with pytest.raises(Invalid, match=told) as refused:
        keys.of(Bus(keys=str(ring.folder)))
    assert str(ring.folder) in str(refused.value)


def test_the_group_may_read_what_root_hands_out(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = ring.cluster.stat().st_uid
    if owner != 0:
        pytest.skip("needs a file of root's")
    ring.cluster.chmod(0o640)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert keys.read(ring.cluster).kind == "cluster"
    ring.cluster.chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600"):
        keys.read(ring.cluster)


def test_nothing_is_overwritten_unasked(ring: Keyring, tmp_path: Path) -> None:
    before = keys.read(ring.cluster)
    with pytest.raises(Invalid, match="--force"):
        ring.make("again")
    ring.add_client("alice", tmp_path / "alice.key")
    with pytest.raises(Invalid, match="there is a client alice already"):
        ring.add_client("alice", tmp_path / "other.key")
    with pytest.raises(Invalid, match="exists already"):
        ring.add_client("bob", tmp_path / "alice.key")
    with pytest.raises(Invalid, match="cannot be a name"):
        ring.add_client("two words", tmp_path / "b.key")
    with pytest.raises(Invalid, match="no client bob"):
        ring.revoke_client("bob")
    ring.make("again", force=True)
    assert keys.read(ring.cluster).public != before.public
    assert not ring.clients()


def test_others_can_reach_a_cluster_only_with_keys(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPS2_KEYS", raising=False)
    for host in ("127.0.0.1", "127.8.0.1", "localhost", "::1"):
        config.load().require_keys(host)
    for host in ("0.0.0.0", "192.0.2.1", "::", "worker-3"):
        with pytest.raises(Invalid, match="spsctl keys init"):
            config.load().require_keys(host)
        config.load(keys=str(ring.folder)).require_keys(host)
    monkeypatch.setenv("SPS2_KEYS", str(ring.folder))
    assert config.load().bus.keys == config.environment_bus().keys == str(ring.folder)
