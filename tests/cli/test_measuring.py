"""What `spsctl profile` asks of a cluster, and what it makes of the answers."""

import asyncio
import random

import pytest

from sps2.cli.simulator import measuring, probes
from sps2.cli.simulator.fitting import Step
from sps2.cli.simulator.measuring import Measured, Measuring
from sps2.cli.simulator.models import named
from sps2.cli.simulator.probes import Probes, Target
from sps2.common.config import Sharing
from sps2.common.errors import Invalid, Refused
from sps2.services.scheduler.schemes import Schemes

from .played import Played

SHAPE = named("smollm2-135m")


def target(longest: int = 4000) -> Target:
    schemes = Schemes(SHAPE, 2, Sharing())
    return Target(schemes, range(100, 200), longest, 2, 2, 32, 2048)


def measured(client: Played, aim: Target, seconds: float = 1.0) -> Measured:
    told: list[float] = []
    asker = Probes(client, aim, random.Random(0))
    found = asyncio.run(
        Measuring(asker, aim, seconds, lambda what, share: told.append(share)).run()
    )
    assert told == sorted(told)
    assert all(0.0 <= each <= 1.0 for each in told)
    return found


def test_prompts_and_batches_of_every_kind_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "WINDOW_S", 0.01)
    monkeypatch.setattr(measuring, "OVERTIME", 1e9)  # all is measured, however slow this machine is
    client = Played()
    found = measured(client, target(), seconds=1.0)
    alone = [each.shares[0].rows for each in found.prompts if each.is_alone]
    assert len(alone) >= 12
    assert alone == sorted(alone)
    shared = [each for each in found.prompts if each.is_shared]
    assert len(shared) >= 4
    for each in shared:
        rows = sum(share.rows for share in each.shares)
        assert sum(share.pairs for share in each.shares) == pytest.approx(rows * rows / 2)
        assert each.moved > 0
    assert any(not each.is_alone and not each.is_shared for each in found.prompts)
    assert all(each.ttft_s > 0 for each in found.prompts)
    assert {each.busy for each in found.steps} == {1, 2}
    assert max(each.sequences for each in found.steps) >= 2
    assert all(each.seconds > 0 for each in found.steps)
    assert not client.live  # all requests of its own have ended


def test_keys_are_those_of_the_shard_that_has_most() -> None:
    aim = target(20_000)
    asker = Probes(Played(), aim, random.Random(0))
    (local,) = asyncio.run(asker.steps(1, 1000))
    assert not local.is_spread
    assert 1000 < local.keys < 1600
    (spread,) = asyncio.run(asker.steps(1, 3000))
    assert spread.is_spread
    assert 3000 < spread.keys < 3600


def test_prompts_are_fresh_and_documents_begin_alike() -> None:
    client = Played()
    asker = Probes(client, target(), random.Random(0))

    async def ask() -> None:
        for _ in range(2):
            await asker.prefill(50)
        for context in (40, 80):
            await asker.steps(1, context)

    asyncio.run(ask())
    first, second, short, long = client.prompts
    assert first != second
    assert long[:40] == short


def test_a_busy_cluster_is_waited_for_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "QUIET_S", 0.05)
    with pytest.raises(Refused, match=r"2 requests of others under way.*when it is idle"):
        measured(Played(foreign=2), target())


def test_steps_beside_somebody_elses_request_do_not_count() -> None:
    client = Played()

    async def ask() -> list[Step]:
        asker = Probes(client, target(), random.Random(0))
        task = asyncio.create_task(asker.steps(2, 100))
        while not client.prompts:
            await asyncio.sleep(0)
        client.foreign = 1
        return await task

    assert asyncio.run(ask()) == []


def test_a_cluster_too_small_is_refused() -> None:
    with pytest.raises(Invalid, match=r"too small.*60 tokens, and 128 are needed"):
        measured(Played(), target(60))
