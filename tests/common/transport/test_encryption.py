"""Which processes encrypt their links."""

from pathlib import Path

import msgspec
import pytest

from sps2.common.config import Bus, Cluster
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring
from sps2.common.transport.encryption import decide

HERE, THERE = "127.0.0.1", "10.77.0.1"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> str:
    ring = Keyring(tmp_path_factory.mktemp("cluster") / "keys")
    ring.make("test")
    return str(ring.folder)


@pytest.mark.parametrize(
    ("encryption", "host", "is_encrypted"),
    [
        ("auto", HERE, False),
        ("auto", THERE, True),
        ("auto", "0.0.0.0", True),
        ("on", HERE, True),
        ("on", THERE, True),
        ("off", HERE, False),
        ("off", THERE, False),
    ],
)
def test_with_keys(keys: str, encryption: str, host: str, is_encrypted: bool) -> None:
    cluster = msgspec.convert({"encryption": encryption, "bus": {"keys": keys}}, Cluster)
    found = decide(cluster, host, "tcp")
    assert (found.key is not None) is is_encrypted
    assert ("encrypted by TLS" in found.reason) is is_encrypted


def test_without_keys(tmp_path: Path) -> None:
    assert decide(Cluster(), HERE, "tcp") == (None, "in the clear, since all is on loopback")
    with pytest.raises(Invalid, match="spsctl keys init"):
        decide(Cluster(), THERE, "tcp")
    for host in (HERE, THERE):
        with pytest.raises(Invalid, match=r"encryption.*spsctl keys init"):
            decide(Cluster(encryption="on"), host, "tcp")
    with pytest.raises(Invalid, match="no key"):
        decide(Cluster(bus=Bus(keys=str(tmp_path / "none"))), THERE, "tcp")


def test_ucx_cannot(keys: str) -> None:
    bus = Bus(keys=keys)
    found = decide(Cluster(bus=bus), THERE, "ucx")
    assert found.key is not None  # for handshakes
    assert "UCX sends tensors in the clear: give shards a network of their own" in found.reason
    assert "tcp" in found.reason
    with pytest.raises(Invalid, match="transport = "):
        decide(Cluster(bus=bus, encryption="on"), THERE, "ucx")
    with pytest.raises(ValueError, match="UCX cannot encrypt: set `transport` to tcp"):
        Cluster(bus=bus, encryption="on", transport="ucx")
