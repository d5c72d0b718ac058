"""Where things are kept: what must not be lost is not in a cache."""

from pathlib import Path

import pytest

from sps2.common import places


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's home, with nothing set."""
    for name in ("SPS2_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_usual_places(user: Path) -> None:
    assert places.cache() == user / ".cache" / "sps2"
    assert places.keys() == user / ".config" / "sps2" / "keys"
    assert places.state() == user / ".local" / "state" / "sps2"
    assert places.inherited() == {}


def test_the_places_of_the_environment(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/k")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says their specification
    assert (places.cache(), places.keys()) == (Path("/c/sps2"), Path("/k/sps2/keys"))
    assert places.state() == user / ".local" / "state" / "sps2"


def test_all_in_one_folder(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/k")
    monkeypatch.setenv("SPS2_HOME", "~/all")
    assert {places.cache(), places.state(), places.keys().parent} == {user / "all"}
    assert places.inherited() == {"SPS2_HOME": str(user / "all")}


def test_keys_in_the_cache_are_used_until_they_are_moved(user: Path) -> None:
    former = user / ".cache" / "sps2" / "keys"
    former.mkdir(parents=True)
    assert places.keys() == former
    places.lasting_keys().parent.mkdir(parents=True)
    former.rename(places.lasting_keys())
    assert places.keys() == places.lasting_keys() == user / ".config" / "sps2" / "keys"
