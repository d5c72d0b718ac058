"""What `spsctl doctor` says of keys, wherever they are configured."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sps2.cli import key_checks
from sps2.cli.doctor_findings import Finding
from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.keys.keyring import Keyring

DAY = timedelta(days=1)


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    made = Keyring(tmp_path / "keys")
    made.make("here")
    made.add_api_key("web", datetime.now(UTC) + DAY)
    made.add_client("alice", made.folder / "alice.key")
    return made


def found(cluster: Cluster) -> dict[str, tuple[str, str]]:
    return {each.check: (each.verdict, each.detail) for each in key_checks.run_all(cluster)}


def of(ring: Keyring) -> dict[str, tuple[str, str]]:
    return found(config.load(keys=str(ring.folder)))


def test_all_is_well(ring: Keyring) -> None:
    assert of(ring) == {
        "keys": ("ok", f"{ring.folder} has the key of cluster here"),
        "clients": ("ok", "1: alice"),
        "alice.key": ("ok", "is the key of client alice"),
        "API keys": ("ok", "1 valid: web"),
    }


def test_wherever_they_are_configured(
    ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'[bus]\nkeys = "{ring.cluster}"\n')
    by_file = found(config.load(file))
    assert [*by_file] == ["keys", "clients", "API keys"], "of a file, what belongs to it"
    monkeypatch.setenv("SPS2_KEYS", str(ring.folder))
    assert found(config.load()) == of(ring)


@pytest.mark.parametrize(
    ("spoil", "check", "verdict", "said"),
    [
        (lambda ring: ring.folder.chmod(0o750), "keys", "broken", "chmod 700"),
        (lambda ring: ring.cluster.chmod(0o644), "keys", "broken", "chmod 600"),
        (lambda ring: ring.cluster.unlink(), "keys", "broken", "spsctl keys init"),
        (lambda ring: ring.cluster.write_text("{"), "keys", "broken", "no key file"),
        (lambda ring: ring.listed.chmod(0o640), "clients", "broken", "chmod 600"),
        (lambda ring: ring.listed.write_text("[]"), "clients", "broken", "malformed"),
        (lambda ring: ring.api.chmod(0o604), "API keys", "broken", "chmod 600"),
        (lambda ring: ring.api.write_bytes(b'"\xff'), "API keys", "broken", "malformed"),
        (lambda ring: ring.api.unlink(), "API keys", "warning", "spsctl keys api add"),
        (lambda ring: ring.revoke_client("alice"), "alice.key", "warning", "was revoked"),
        (lambda ring: ring.make("other", force=True), "alice.key", "warning", "another cluster"),
        (
            lambda ring: (ring.folder / "alice.key").chmod(0o666),
            *("alice.key", "warning", "chmod 600"),
        ),
        (
            lambda ring: ring.add_api_key("old", datetime.now(UTC) - DAY),
            *("API keys", "warning", "1 valid: web; 1 expired: old"),
        ),
        (
            lambda ring: ring.revoke_api_key("web"),
            *("API keys", "warning", "1 revoked: web; a gateway answers no HTTP request"),
        ),
    ],
)
def test_what_is_wrong_is_said_in_its_line(
    ring: Keyring, spoil: Callable[[Keyring], object], check: str, verdict: str, said: str
) -> None:
    spoil(ring)
    assert of(ring)[check][0] == verdict
    assert said in of(ring)[check][1]


def test_a_client_cannot_serve(ring: Keyring) -> None:
    verdict, said = found(config.load(keys=str(ring.folder / "alice.key")))["keys"]
    assert verdict == "broken"
    assert "a service needs cluster.key" in said


def test_there_are_none() -> None:
    (finding,) = key_checks.run_all(Cluster())
    assert finding == Finding("keys", "ok", "none are configured, nor needed: all is on loopback")
    (finding,) = key_checks.run_all(Cluster(host="192.0.2.1"))
    assert finding.verdict == "broken"
    assert "spsctl keys init" in finding.detail


def test_the_key_of_tls(ring: Keyring, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[gateway]\ntls_certificate = "/no/cert"\ntls_key = "/no/key"\n')
    assert found(config.load(file))["TLS key"] == ("broken", "[gateway] there is no /no/cert")
