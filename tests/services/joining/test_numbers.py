"""Which shards a joining machine gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import Role
from sps2.services.joining.numbers import Numbers

MIXED = Cluster(prefill=0, decode=0, mixed=2)
SPLIT = Cluster(prefill=1, decode=2)


def asked(prefill: int = 0, decode: int = 0, mixed: int = 0) -> dict[Role, int]:
    return {"prefill": prefill, "decode": decode, "mixed": mixed}


def test_numbers_go_on_behind_the_configured_ones() -> None:
    numbers = Numbers(MIXED)
    assert numbers.give("a", asked(), []) == ("mixed-2",)
    assert numbers.give("b", asked(mixed=2), []) == ("mixed-3", "mixed-4")
    assert numbers.give("c", asked(), ["mixed-5"]) == ("mixed-6",)


def test_a_machine_that_comes_again_gets_its_numbers_again() -> None:
    numbers = Numbers(MIXED)
    assert numbers.give("a", asked(), []) == ("mixed-2",)
    numbers.give("b", asked(), [])
    assert numbers.give("a", asked(), ["mixed-2"]) == ("mixed-2",), "its own, lost shard"
    assert numbers.give("a", asked(mixed=2), ["mixed-2"]) == ("mixed-2", "mixed-4")


def test_free_numbers_are_given_again() -> None:
    numbers = Numbers(MIXED)
    numbers.give("a", asked(), [])
    numbers.free("a")
    assert numbers.give("b", asked(), []) == ("mixed-2",)


def test_without_a_wanted_role_the_one_comes_of_which_there_are_less() -> None:
    numbers = Numbers(SPLIT)
    assert numbers.give("a", asked(), []) == ("prefill-1",)
    assert numbers.give("b", asked(), []) == ("prefill-2",), "on a tie, prefill"
    assert numbers.give("c", asked(), []) == ("decode-2",)
    assert numbers.give("d", asked(prefill=1, decode=1), []) == ("prefill-3", "decode-3")


@pytest.mark.parametrize(
    ("cluster", "wanted", "why"),
    [
        (MIXED, asked(prefill=1), "prefill shards cannot join: .* are mixed ones .* --mixed"),
        (SPLIT, asked(mixed=1), "are prefill and decode ones .join with --prefill or --decode"),
    ],
)
def test_shards_that_the_cluster_cannot_use_are_refused(
    cluster: Cluster, wanted: dict[Role, int], why: str
) -> None:
    with pytest.raises(Invalid, match=why):
        Numbers(cluster).give("a", wanted, [])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=30))
def test_no_two_machines_share_a_number(steps: list[tuple[int, int, bool]]) -> None:
    numbers, given_to = Numbers(MIXED), dict[str, tuple[str, ...]]()
    for machine, count, leaves in steps:
        name = str(machine)
        if leaves:
            numbers.free(name)
            given_to.pop(name, None)
        else:
            given_to[name] = numbers.give(name, asked(mixed=count), [])
        held = [shard for shards in given_to.values() for shard in shards]
        assert len({*held, "mixed-0", "mixed-1"}) == len(held) + 2
