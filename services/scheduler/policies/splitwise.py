"""Splitwise: prefill and decode on shards of their own, which help each other out under load.

Source: Splitwise (arXiv 2311.18677, section 4.1): the prompt, token and mixed pools.
"""

from collections.abc import Iterator

from sps2.common.config import Scheduler
from sps2.services.scheduler.decisions import Assign, Decision
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.policies.distserve import on_one_shard
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View


class Splitwise(Fcfs):
    """First come, first served. Of mixed shards every second one is at home in the prompt pool.

    If no shard of the prompt pool is free for a request that waits, the token shard with the fewest
    requests does both, and if none of the token pool has room, the prompt shard with the most room
    does. Such a shard returns home once it has no request of the other kind.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(on_one_shard(settings), schemes)

    def decide(self, view: View) -> Iterator[Decision]:
        fleet = view.fleet
        if fleet.prefilling == "mixed" and len(fleet.members) > 1:
            yield from self._settle(view)
        yield from super().decide(view)
        if fleet.prefilling != "mixed":
            return
        causes = {request.wait.cause for request in view.waiting() if request.wait is not None}
        lent = False
        if "shards" in causes and (helpers := self._at_home(view, "decode")):
            helper = min(helpers, key=lambda member: len(member.held))
            yield Assign(helper.shard.id, "mixed")
            lent = True
        if "room" in causes and (helpers := self._at_home(view, "prefill")):
            helper = max(helpers, key=lambda member: fleet.free(member.shard.id))
            yield Assign(helper.shard.id, "mixed")
            lent = True
        if lent:
            yield from super().decide(view)

    def _at_home(self, view: View, duty: str) -> list[Member]:
        """The shards that do only this, if any may do both."""
        members = view.fleet.members
        return [each for id, each in sorted(members.items()) if view.fleet.duty(id) == duty]

    def _settle(self, view: View) -> Iterator[Decision]:
        """Send shards home that help nobody."""
        waits = any(request.wait is not None for request in view.waiting())
        for number, (id, member) in enumerate(sorted(view.fleet.members.items())):
            is_token = number % 2 == 1
            helps = member.prefilled if is_token else member.held
            if view.fleet.duty(id) == "mixed" and not helps and not waits:
                yield Assign(id, "decode" if is_token else "prefill")
