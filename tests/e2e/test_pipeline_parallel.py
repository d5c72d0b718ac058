"""Shards that are pipelines of processes: real ones, the loss of a stage included."""

import asyncio

import pytest

from sps2.common.errors import Invalid

from .conftest import Launch
from .several_processes import answers_departures_and_losses


def test_one_prefill_and_one_decode_shard(launch_processes: Launch) -> None:
    with launch_processes(pp=2, prefill=1, decode=1) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["prefill-0.1", "decode-0.1"]))


def test_two_prefill_and_two_decode_shards(launch_processes: Launch) -> None:
    with launch_processes(pp=3, prefill=2, decode=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["decode-1.2"]))


def test_two_mixed_shards(launch_processes: Launch) -> None:
    with launch_processes(pp=2, mixed=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["mixed-1.1", "mixed-0"]))


def test_more_stages_than_layers_are_refused(launch_processes: Launch) -> None:
    refused = pytest.raises(Invalid, match=r"pp 4 cannot split 3 layers.*possible are 1 to 3")
    with refused, launch_processes(pp=4, prefill=1, decode=1):
        pass
