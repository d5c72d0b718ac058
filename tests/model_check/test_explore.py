"""All orders of messages in a small cluster, up to a bound; and that faults are noticed."""

import pytest

from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.fleet import Fleet

from .explore import DEATHS, Violation, explore
from .world import World

STATES = 700


@pytest.mark.parametrize("policy", ["sps2", "fcfs"])
@pytest.mark.parametrize("death", DEATHS)
def test_no_order_loses_a_page_or_a_request(death: str, policy: str) -> None:
    assert explore(World(policy, (death,), 1), STATES).states == STATES


def test_a_lease_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directory, "release", lambda self, request, epoch: None)
    with pytest.raises(Violation, match="requests hang"):
        explore(World("sps2", (), 0), STATES)


def test_a_promise_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "settle", lambda self, request: None)
    with pytest.raises(Violation, match=r"promises|hang"):
        explore(World("sps2", (), 0), STATES)


def test_a_page_that_two_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(self: Directory, shard: str) -> int:
        return self._pools[shard].pages

    monkeypatch.setattr(Directory, "_free", free)
    with pytest.raises(Violation, match=r"has no pages for it|one twice"):
        explore(World("sps2", (), 0), STATES)


def test_a_request_that_hangs_is_found_with_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that does not put requests back after the loss of a shard."""
    returned = Core.handle

    def handle(self, event, now_s):  # type: ignore[no-untyped-def]
        return [] if type(event).__name__ == "Returned" else returned(self, event, now_s)

    monkeypatch.setattr(Core, "handle", handle)
    with pytest.raises(Violation, match="requests hang") as found:
        explore(World("sps2", ("prefill-0",), 0), STATES)
    assert "prefill-0 dies" in found.value.trace
