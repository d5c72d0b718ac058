"""What `up --invite` adds to a configuration, and from where codes can be made."""

import re
from pathlib import Path
from typing import Any

import pytest

from sps2.cli import addresses, invitation
from sps2.cli.hosts import Host, Hosts
from sps2.cli.runs import Joined, RunFolder
from sps2.common import config
from sps2.common.config import Bus, Cluster, Joining
from sps2.common.errors import Invalid
from sps2.common.keys import join_code
from sps2.common.keys.keyring import Keyring
from sps2.services.joining import mdns

NONE: dict[str, Any] = dict.fromkeys(("prefill", "decode", "mixed", "host", "keys"))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two addresses, and an empty home."""
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    monkeypatch.delenv("SPS2_KEYS", raising=False)
    monkeypatch.setattr(addresses, "reachable", lambda: ["192.168.1.17", "10.0.0.5"])


def test_with_nothing_said_all_is_chosen_and_keys_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = invitation.settings(None, None, NONE, None)
    assert made == {
        "mixed": 1,
        "host": "192.168.1.17",
        "keys": str(tmp_path / "keys"),
        "joining": {"first_port": 8013, "announce": True},
    }
    assert (tmp_path / "keys" / "cluster.key").exists()
    assert "--host takes 10.0.0.5" in capsys.readouterr().err
    cluster = config.load(None, **made)
    assert (cluster.mixed, cluster.prefill, cluster.joining.first_port) == (1, 0, 8013)


def test_keys_that_are_there_are_kept(tmp_path: Path) -> None:
    key = Keyring(tmp_path / "keys").make("before")
    invitation.settings(None, None, NONE, None)
    assert key.public in (tmp_path / "keys" / "cluster.key").read_text()


def test_what_is_said_stays(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        'prefill = 2\nhost = "10.0.0.5"\n[joining]\nfirst_port = 7000\nannounce = false\n'
    )
    Keyring(tmp_path / "mine").make("mine")
    made = invitation.settings(file, None, NONE | {"keys": str(tmp_path / "mine")}, 9000)
    assert made == {
        "host": "10.0.0.5",
        "keys": str(tmp_path / "mine"),
        "joining": {"first_port": 7000, "announce": False},
    }
    flags = NONE | {"decode": 2, "host": "127.0.0.1"}
    made = invitation.settings(None, None, flags, 9000)
    assert (made["host"], made["joining"]) == ("127.0.0.1", {"first_port": 9013, "announce": True})
    assert "mixed" not in made


@pytest.mark.parametrize(
    ("flags", "hosts", "why"),
    [
        ({"host": "0.0.0.0"}, None, r"--host one of this machine's \(192.168.1.17, 10.0.0.5\)"),
        ({}, Hosts((Host("a", "10.0.0.1", mixed=1),)), "leave out --invite"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    flags: dict[str, Any], hosts: Hosts | None, why: str
) -> None:
    with pytest.raises(Invalid, match=why):
        invitation.settings(None, hosts, NONE | flags, None)


def test_a_machine_without_a_network_invites_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "reachable", list)
    with pytest.raises(Invalid, match="no address where others could reach it"):
        invitation.settings(None, None, NONE, None)


def test_the_printed_code_leads_to_this_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Keyring(tmp_path / "keys").make("here")
    cluster = Cluster(
        host="10.0.0.5", joining=Joining(first_port=8013), bus=Bus(keys=str(tmp_path / "keys"))
    )
    invitation.show(cluster, joins=1)
    printed = capsys.readouterr().out
    found = re.search(r"spsctl join (\S+)", printed)
    assert found is not None
    code = join_code.decode(found[1])
    assert (code.address, code.port) == ("10.0.0.5", 8013)
    assert code.fingerprint == join_code.fingerprint(key.public)
    assert "The code is for 1 machine, until" in printed


def test_it_is_said_whether_the_cluster_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Keyring(tmp_path / "keys").make("here")

    def printed(**joining: bool) -> str:
        place = Joining(first_port=8013, **joining)
        bus = Bus(keys=str(tmp_path / "keys"))
        invitation.show(Cluster(host="10.0.0.5", joining=place, bus=bus))
        return " ".join(capsys.readouterr().out.split())

    assert "It is announced on this network by mDNS" in printed()
    assert "not announced by mDNS: `announce` is false in [joining]" in printed(announce=False)
    monkeypatch.setattr(mdns, "find_spec", lambda name: None)
    assert "not announced by mDNS: zeroconf is not installed here" in printed()


def test_codes_are_made_where_the_cluster_was_started() -> None:
    folder = RunFolder("here")
    folder.prepare(Cluster(name="here"), joined=Joined(("mixed-1",), "10.0.0.6"))
    with folder.owned(), pytest.raises(Invalid, match="this machine has joined here itself"):
        invitation.invite(name="here")
    folder.prepare(Cluster(name="here"))
    with folder.owned(), pytest.raises(Invalid, match="start it with `spsctl up --invite`"):
        invitation.invite(name="here")
