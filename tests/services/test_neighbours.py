"""Cards and memory of a machine are shared by the processes on it, not to those of the cluster."""

from collections import Counter

import pytest

from sps2.common.config import Cluster
from sps2.services.neighbours import Neighbours, neighbours


def test_the_processes_of_one_machine_are_all_of_the_cluster() -> None:
    names = Cluster(prefill=1, decode=2, decode_tp=2).shard_names()
    assert names == ["prefill-0", "decode-0", "decode-0.1", "decode-1", "decode-1.1"]
    assert neighbours("decode-1", names) == Neighbours(3, 5, 4)
    assert [neighbours(name, names).card(4) for name in names] == [0, 1, 2, 3, 0]
    assert neighbours("prefill-0", names).on_a_card(4) == 2


def test_a_shard_more_than_were_planned_is_one_of_them() -> None:
    assert neighbours("decode-1", ["prefill-0", "decode-0"]) == Neighbours(2, 3, 2)


@pytest.mark.parametrize("host", [0, 1])
def test_two_hosts_of_two_cards_use_both(host: int) -> None:
    here = [f"prefill-{host}", f"decode-{host}"]
    used = Counter(neighbours(name, here).card(2) for name in here)
    assert used == {0: 1, 1: 1}


def test_a_process_has_its_card_alone_where_there_are_as_many() -> None:
    here = [f"decode-{index}" for index in range(8, 16)]
    assert [neighbours(name, here).on_a_card(8) for name in here] == [1] * 8


def test_the_only_decode_shard_of_a_host_has_the_memory_of_all() -> None:
    assert neighbours("decode-3", ["prefill-3", "decode-3"]).of_role == 1
