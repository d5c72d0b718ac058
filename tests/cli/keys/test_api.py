"""`spsctl keys api`: made once, listed without secrets, revoked; expiry as people write it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sps2.cli.keys.api import parse_expiry
from sps2.cli.main import app
from sps2.common.keys import api_digest
from sps2.common.keys.keyring import Keyring

NOW = datetime(2027, 1, 1, tzinfo=UTC)


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", "api", *arguments, "--keys", str(folder)])


def test_from_add_to_revoke(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert "spsctl keys init" in run(folder, "add", "bob").stderr
    ring = Keyring(folder)
    ring.make("test")
    limits = ("--requests-per-minute", "7", "--tokens-per-minute", "9000", "--expires", "90d")
    key = run(folder, "add", "bob", *limits).stdout.strip()
    kept = ring.api_keys()["bob"]
    assert kept.digest == api_digest(key)
    assert (kept.requests_per_minute, kept.tokens_per_minute) == (7, 9000)
    assert kept.expires is not None
    assert 89 <= (kept.expires - datetime.now(UTC)).days <= 90
    assert run(folder, "add", "bob").exit_code == 1

    listed = run(folder, "list").stdout
    assert all(word in listed for word in ("bob", "valid", "7", "9000"))
    assert key not in listed
    assert run(folder, "revoke", "bob").exit_code == 0
    assert "revoked" in run(folder, "list").stdout
    assert run(folder, "revoke", "bob").exit_code == 1
    assert run(folder, "add", "bob").stdout.strip() != key


def test_a_name_that_is_none(tmp_path: Path) -> None:
    Keyring(tmp_path / "keys").make("test")
    done = run(tmp_path / "keys", "add", "a b")
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert said == "error: 'a b' cannot be a name: a name has 1 to 64 letters, digits and . _ @ -"


def test_help_and_error_tell_the_same_ways_to_write_an_expiry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    helped = CliRunner().invoke(app, ["keys", "api", "add", "--help"]).stdout
    wrong = run(tmp_path, "add", "x", "--expires", "1s").stderr
    for way in ("90d", "12h", "30m", "2027-01-31", "2027-01-31T12:00Z"):
        assert way in helped
        assert way in wrong


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("90d", datetime(2027, 4, 1, tzinfo=UTC)),
        ("12h", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        ("30m", datetime(2027, 1, 1, 0, 30, tzinfo=UTC)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00+01:00", datetime(2027, 1, 31, 11, tzinfo=UTC)),
    ],
)
def test_expiry(text: str, when: datetime) -> None:
    assert parse_expiry(text, NOW) == when


@pytest.mark.parametrize("text", ["", "soon", "90", "1y", "2026-12-31", "2027-13-01"])
def test_expiry_that_is_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"neither|passed"):
        parse_expiry(text, NOW)
