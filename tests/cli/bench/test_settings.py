"""Settings by name, and what is said of wrong ones."""

import pytest

from sps2.cli.bench.settings import EXACT, SETTINGS, scheme_of, split
from sps2.common.errors import Invalid
from sps2.services.scheduler.csa_thresholds import STEPS


def test_a_list_may_have_options_with_commas() -> None:
    settings = "exact,csa:drop=.25,fine=2,hire:budget=.3,star"
    assert split(settings) == ["exact", "csa:drop=.25,fine=2", "hire:budget=.3", "star"]


METHODS = {"exact": "gather", "int8": "gather", "balanced": "csa", "fast": "csa", "hire": "csa"}
"""Of settings that are not called as their method."""


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_do_without_options(name: str) -> None:
    scheme = scheme_of(name, 3, 8000)
    assert scheme.method == METHODS.get(name, name)
    assert (scheme.selection is not None) == (scheme.method in ("csa", "strided"))


def test_no_two_settings_are_the_same_but_for_their_names() -> None:
    schemes = [scheme_of(name, 3, 8000) for name in SETTINGS]
    assert all(schemes.count(scheme) == 1 for scheme in schemes)


def test_options() -> None:
    assert scheme_of("exact", 3) == EXACT
    scheme = scheme_of(
        "csa:drop=.004,fine=.01,probes=4,rounds=1,heldout=.1,kv_transfer_dtype=auto", 2
    )
    selection = scheme.selection
    assert selection is not None
    assert (selection.drop, selection.fine) == ((0.004,) * 2, (0.01,) * 2)
    assert (selection.probes, selection.rounds, selection.held_out) == (4, 1, 0.1)
    assert (scheme.method, scheme.kv_transfer_dtype) == ("csa", "auto")


def test_balanced_is_what_a_request_gets() -> None:
    assert scheme_of("balanced", 3, tokens=4096).method == "gather"
    coded = scheme_of("balanced", 3, tokens=8000)
    packed = scheme_of("balanced:form=packed", 3, tokens=8000)
    assert coded.method == packed.method == "csa"
    assert coded.selection is not None
    assert coded.selection.steps == STEPS["balanced"]
    assert packed.selection is not None
    assert packed.selection.steps is None
    given = scheme_of("csa:steps=.1/2", 3).selection
    assert given is not None
    assert given.steps == (0.1, 2.0)


@pytest.mark.parametrize(
    "setting",
    [
        *(
            "none",
            "int8:x=1",
            "csa:drop",
            "csa:drop=x",
            "csa:rounds=3",
            "csa:steps=.1",
            "fast:form=x",
        ),
        *("csa:steps=0/1", "csa:kv_transfer_dtype=int4"),
    ],
)
def test_a_wrong_setting(setting: str) -> None:
    with pytest.raises(Invalid, match=setting.partition(":")[0]):
        scheme_of(setting, 3)
