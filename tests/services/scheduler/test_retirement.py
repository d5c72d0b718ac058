"""Shards that drain: they get nothing new, finish what they have, or hand it over."""

import asyncio
from contextlib import aclosing

import pytest

from sps2.common.errors import Cancelled, Invalid, Refused
from sps2.common.messages import Done, Drain, Forget, KeepDraining, Retire, Undrain, Unfinished
from sps2.services.scheduler import retirement
from sps2.services.scheduler.actions import Action, Launch, Preempt
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Event,
    Granted,
    HandedOver,
    Joined,
    Lost,
    Prefilled,
    Retired,
)
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.retirement import Retirement

from .test_core import cluster, launched, room, shard, submit

LONG_S = 1000.0


class Asked:
    """A shard that notes what it is to remember."""

    def __init__(self) -> None:
        self.kept: list[bool] = []
        self.awake = asyncio.Event()
        """Until it is set, the shard notes nothing."""
        self.awake.set()
        self.is_late = False
        """Whether it takes longer to note something than it may."""

    async def call(self, request: KeepDraining, deadline_s: float) -> Done:
        await self.awake.wait()
        if self.is_late:
            raise Cancelled("late")
        self.kept.append(request.draining)
        return Done()


class Stage:
    """A core and the handlers that drain its shards."""

    def __init__(self, **more: int) -> None:
        self.core: Core = cluster(**more)
        self.actions: list[Action] = []
        self.shards = {shard: Asked() for shard in self.core.fleet.members}
        self.retirement = Retirement(self.core, self.shards, self.handle)  # type: ignore[arg-type]

    def handle(self, event: Event) -> None:
        self.actions += self.core.handle(event, 0.0)

    def state(self, shard: str) -> str:
        return next(each.state for each in statuses(self.core.fleet) if each.id == shard)

    def decoding(self, request: str = "r") -> str:
        """A request in its answer; returns who generates it."""
        plan = launched(submit(self.core, request, 60)).plan
        self.handle(Granted(request, self.core.fleet.room))
        self.handle(Prefilled(request))
        return plan.owner


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "POLL_S", 0.001)
    monkeypatch.setattr(retirement, "AGAIN_S", 0.001)


async def test_it_tells_what_is_left_until_nothing_is() -> None:
    stage = Stage()
    owner = stage.decoding()
    async with aclosing(stage.retirement.drain(Drain(owner, LONG_S))) as items:
        assert await anext(items) == Unfinished(("r",))
        assert stage.state(owner) == "draining"
        assert stage.shards[owner].kept == [True]
        assert owner not in launched(submit(stage.core, "s", 60)).plan.shards
        stage.handle(Ended("r"))
        assert [item async for item in items] == [Unfinished(())]
    assert stage.state(owner) == "drained"
    assert stage.core.handovers == 0


async def test_what_is_late_is_handed_over_once() -> None:
    stage = Stage()
    owner = stage.decoding()
    async with aclosing(stage.retirement.drain(Drain(owner, 0.0))) as items:
        assert await anext(items) == Unfinished(("r",))
        rest = asyncio.create_task(anext(items))
        while Preempt("r") not in stage.actions:
            await asyncio.sleep(0)
        stage.handle(HandedOver(owner))
        stage.handle(Ended("r"))
        assert await rest == Unfinished(())
    assert stage.actions.count(Preempt("r")) == stage.core.handovers == 1


def test_what_has_no_lease_yet_is_handed_over_when_it_has() -> None:
    stage = Stage()
    plan = launched(submit(stage.core, "r", 60)).plan
    stage.handle(Retired(plan.owner))
    stage.handle(HandedOver(plan.owner))
    assert stage.actions == []
    stage.handle(Granted("r", stage.core.fleet.room))
    stage.handle(HandedOver(plan.owner))
    assert stage.actions == [Preempt("r")]


async def test_one_that_ends_meanwhile_ends_it() -> None:
    stage = Stage()
    owner = stage.decoding()
    async with aclosing(stage.retirement.retire(Retire(owner, LONG_S))) as items:
        assert await anext(items) == Unfinished(("r",))
        stage.handle(Lost(owner, f"{owner}/0"))
        assert [item async for item in items] == []
    assert stage.state(owner) == "lost", "it is missed: it is configured"


@pytest.mark.parametrize(
    ("shard", "why"),
    [
        ("decode-7", "decode-7 is not a shard of this cluster; there are decode-0, prefill-0"),
        ("prefill-1", "prefill-1 is lost; there are decode-0, prefill-0"),
        ("prefill-0", "without prefill-0 no shard would prefill"),
        ("decode-0", "without decode-0 no shard would decode"),
    ],
)
async def test_one_that_is_not_there_or_cannot_be_spared_is_refused(shard: str, why: str) -> None:
    stage = Stage(decode=1)
    stage.handle(Lost("prefill-1", "prefill-1/0"))
    with pytest.raises(Invalid, match=why):
        await anext(stage.retirement.drain(Drain(shard, LONG_S)))
    assert stage.core.fleet.leaving == set()


async def test_drains_at_once_leave_one_that_does_the_same() -> None:
    stage = Stage()
    stage.shards["decode-0"].awake.clear()
    first = asyncio.create_task(anext(stage.retirement.drain(Drain("decode-0", LONG_S))))
    await asyncio.sleep(0)
    with pytest.raises(Invalid, match="without decode-1 no shard would decode"):
        await anext(stage.retirement.drain(Drain("decode-1", LONG_S)))
    stage.shards["decode-0"].awake.set()
    assert await first == Unfinished(())
    assert stage.core.fleet.leaving == {"decode-0"}


async def test_one_that_cannot_note_that_it_drains_works_on() -> None:
    stage = Stage()
    stage.shards["decode-0"].is_late = True
    with pytest.raises(Cancelled):
        await anext(stage.retirement.drain(Drain("decode-0", LONG_S)))
    assert stage.state("decode-0") == "ready"
    assert await anext(stage.retirement.drain(Drain("decode-1", LONG_S))) == Unfinished(())


async def test_a_second_drain_that_is_not_noted_leaves_the_first() -> None:
    stage = Stage()
    assert await anext(stage.retirement.drain(Drain("decode-0", LONG_S))) == Unfinished(())
    stage.shards["decode-0"].is_late = True
    with pytest.raises(Cancelled):
        await anext(stage.retirement.drain(Drain("decode-0", LONG_S)))
    assert stage.state("decode-0") == "drained"


async def test_undoing_a_drain_waits_until_it_is_noted() -> None:
    stage = Stage()
    shard = stage.shards["decode-0"]
    shard.awake.clear()
    draining = asyncio.create_task(anext(stage.retirement.drain(Drain("decode-0", LONG_S))))
    undoing = asyncio.create_task(stage.retirement.undrain(Undrain("decode-0")))
    await asyncio.sleep(0)
    shard.awake.set()
    await asyncio.gather(draining, undoing, return_exceptions=True)
    assert shard.kept == [True, False]
    assert stage.state("decode-0") == "ready"


async def test_the_last_one_may_end_and_what_it_did_waits_for_its_return() -> None:
    stage = Stage(decode=1)
    assert [item async for item in stage.retirement.retire(Retire("decode-0", LONG_S))] == [
        Unfinished(())
    ]
    assert submit(stage.core, "r", 60) == []
    stage.handle(Lost("decode-0", "decode-0/0"))
    (launch,) = stage.core.handle(Joined(shard("decode", 0, 64, life=1)), 1.0)
    assert isinstance(launch, Launch)


async def test_one_that_drained_gets_work_again() -> None:
    stage = Stage()
    async for _ in stage.retirement.drain(Drain("decode-0", LONG_S)):
        pass
    with pytest.raises(Invalid, match="nothing to undo; drained: decode-0"):
        await stage.retirement.undrain(Undrain("decode-1"))
    await stage.retirement.undrain(Undrain("decode-0"))
    assert stage.shards["decode-0"].kept == [True, False]
    assert stage.state("decode-0") == "ready"
    with pytest.raises(Invalid, match="decode-0 does not drain: nothing to undo; drained: none"):
        await stage.retirement.undrain(Undrain("decode-0"))


async def test_one_that_ends_gets_no_work_again_until_it_is_back() -> None:
    stage = Stage()
    owner = stage.decoding()
    async with aclosing(stage.retirement.retire(Retire(owner, LONG_S))) as items:
        assert await anext(items) == Unfinished(("r",))
        with pytest.raises(Refused, match=f"{owner} is ending"):
            await stage.retirement.undrain(Undrain(owner))
        assert stage.state(owner) == "draining"
        assert stage.shards[owner].kept == []
    stage.handle(Lost(owner, f"{owner}/0"))
    stage.handle(Ended("r"))
    stage.handle(Joined(shard("decode", int(owner[-1]), 64, life=1)))
    assert await anext(stage.retirement.drain(Drain(owner, LONG_S))) == Unfinished(())
    await stage.retirement.undrain(Undrain(owner))
    assert stage.state(owner) == "ready"


async def test_one_that_is_told_to_end_while_it_notes_something_ends() -> None:
    stage = Stage()
    noting = stage.shards["decode-0"]
    noting.awake.clear()
    noting.is_late = True
    draining = asyncio.create_task(anext(stage.retirement.drain(Drain("decode-0", LONG_S))))
    await asyncio.sleep(0)
    assert await anext(stage.retirement.retire(Retire("decode-0", LONG_S))) == Unfinished(())
    noting.awake.set()
    with pytest.raises(Cancelled):
        await draining
    assert stage.state("decode-0") == "drained"


def test_requests_that_waited_for_it_begin_when_it_gets_work_again() -> None:
    from sps2.services.scheduler.events import Employed

    stage = Stage(decode=1)
    stage.handle(Retired("decode-0"))
    assert submit(stage.core, "r", 60) == []
    assert isinstance(stage.core.handle(Employed("decode-0"), 0.0)[0], Launch)


def test_one_that_registers_again_drains_on() -> None:
    """The scheduler has restarted, the shard has not."""
    stage = Stage(decode=1)
    stage.handle(Joined(shard("decode", 1, 64), draining=True))
    stage.core.fleet.room = room(2, 64)
    assert stage.state("decode-1") == "drained"
    assert stage.core.fleet.waiting_for() == "decode-1 is draining"
    assert stage.decoding() == "decode-0"


async def test_one_that_joined_and_left_for_good_is_forgotten() -> None:
    stage = Stage(decode=1)
    stage.handle(Joined(shard("decode", 1, 64)))
    stage.handle(Lost("decode-1", "decode-1/0"))
    await stage.retirement.forget(Forget("decode-1"))
    assert "decode-1" not in {each.id for each in statuses(stage.core.fleet)}
