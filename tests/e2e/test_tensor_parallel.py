"""Shards of several processes: real ones, their loss included."""

import asyncio

import pytest

from sps2.common.errors import Invalid

from .conftest import Launch
from .several_processes import answers_departures_and_losses


def test_answers_departures_and_killed_followers(launch_processes: Launch) -> None:
    with launch_processes(prefill=2, tp=2, decode=2, decode_tp=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["prefill-1.1", "decode-1.1"]))


def test_a_model_that_cannot_be_split_so_is_refused(launch_processes: Launch) -> None:
    refused = pytest.raises(Invalid, match=r"tp 3 cannot split 4 heads.*possible are 1, 2")
    with refused, launch_processes(prefill=1, tp=3, decode=1, decode_tp=1):
        pass
