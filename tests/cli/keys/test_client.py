"""`spsctl keys`: what it makes, what it says, and what `spsctl up` says without."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sps2.cli.main import app
from sps2.common import keys


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPS2_KEYS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_keys_are_made_listed_and_revoked(home: Path) -> None:
    made = run("keys", "init")
    assert made.exit_code == 0, made.output
    folder = home / "home" / "keys"
    assert keys.read(folder / "cluster.key").secret not in made.output
    assert run("keys", "init").exit_code == 1

    assert run("keys", "client", "add", "alice").exit_code == 0
    alice = keys.read(home / "alice.key")
    listed = run("keys", "client", "list").stdout
    assert "alice" in listed
    assert alice.public in listed
    assert run("keys", "client", "revoke", "alice").exit_code == 0
    assert "alice" not in run("keys", "client", "list").stdout
    assert run("keys", "client", "revoke", "alice").exit_code == 1


def test_keys_in_the_cache_are_used_and_told_of(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an earlier version made them: a program that clears caches may delete them."""
    for variable in ("SPS2_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    before, after = home / ".cache" / "sps2" / "keys", home / ".config" / "sps2" / "keys"
    assert run("keys", "init", "--keys", str(before)).exit_code == 0
    added = run("keys", "api", "add", "web")
    assert added.exit_code == 0, added.output
    assert f"Move the folder to {after}" in added.stderr
    assert (before / "api.json").exists()

    after.parent.mkdir(parents=True)
    before.rename(after)
    again = run("keys", "api", "list")
    assert "web" in again.stdout
    assert again.stderr == ""


def test_keys_are_made_where_nothing_clears_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPS2_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "settings"))
    assert run("keys", "init").exit_code == 0
    assert (home / "settings" / "sps2" / "keys" / "cluster.key").exists()


def test_a_key_that_looks_like_markup_is_shown_whole(home: Path) -> None:
    assert run("keys", "init").exit_code == 0
    assert run("keys", "client", "add", "alice").exit_code == 0
    public, file = (
        "b}6[#bncv>XA@-)yhA>c{nm^Wq=)6]>(kiI)S5kK",
        home / "home" / "keys" / "clients.json",
    )
    file.write_text(file.read_text().replace(keys.read(home / "alice.key").public, public))
    assert public in run("keys", "client", "list").stdout


def test_the_folder_can_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_KEYS", str(home / "env"))
    assert run("keys", "init").exit_code == 0
    assert run("keys", "init", "--keys", str(home / "option")).exit_code == 0
    assert (home / "env" / "cluster.key").exists()
    assert (home / "option" / "cluster.key").exists()
    monkeypatch.setenv("SPS2_KEYS", str(home / "env" / "cluster.key"))
    assert "name that with --keys" in run("keys", "client", "list").stderr


def test_up_where_others_reach_it_names_the_command_that_is_missing() -> None:
    result = run("up", "--host", "0.0.0.0")
    assert result.exit_code == 1
    assert "spsctl keys init" in result.stderr
    assert "--keys" in result.stderr
    assert run("keys", "init").exit_code == 0
    assert run("keys", "client", "add", "alice").exit_code == 0
    wrong = run("up", "--host", "0.0.0.0", "--keys", "alice.key")
    assert "a service needs cluster.key" in wrong.stderr


def test_what_keys_init_says_to_do_next_works(home: Path) -> None:
    """With a folder of one's own, and without."""
    for option in ("", f" --keys {home}/my-keys"):
        made = run("keys", "init", *option.split())
        (line,) = (line for line in made.stdout.splitlines() if "api add" in line)
        command = line[line.index("spsctl") :].split()[1:]
        assert command[-2:] == (option.split() or ["add", "NAME"])
        assert run(*command).exit_code == 0, line
    revoked = run("keys", "api", "revoke", "NAME", "--keys", f"{home}/my-keys")
    assert revoked.stdout == "Revoked API key NAME.\n"
