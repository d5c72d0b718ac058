"""DistServe: prefill and decode on shards of their own, each prompt on one shard, first come first.

Source: DistServe (arXiv 2401.09670, section 4.3), without its search for the numbers of shards.
"""

from collections.abc import Iterator
from sys import maxsize

from msgspec.structs import replace

from sps2.common.config import Scheduler
from sps2.common.messages import Role
from sps2.services.scheduler.decisions import Assign, Decision
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View


class DistServe(Fcfs):
    """First come, first served, with the phases apart.

    Of mixed shards every second one only prefills and the others only decode. A prompt takes the
    shard that is free first, and its KV lies on one shard if it fits there.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(on_one_shard(settings), schemes)

    def decide(self, view: View) -> Iterator[Decision]:
        yield from halves(view)
        yield from super().decide(view)


def on_one_shard(settings: Scheduler) -> Scheduler:
    """Settings under which one shard prefills a prompt and one keeps its KV, if there is room."""
    return replace(settings, prefill_span_tokens=maxsize, decode_span_tokens=maxsize)


def halves(view: View) -> Iterator[Decision]:
    """Assign every second mixed shard to prefill and the others to decode, those that do both."""
    fleet = view.fleet
    if fleet.prefilling != "mixed" or len(fleet.members) < 2:
        return
    for number, shard in enumerate(sorted(fleet.members)):
        duty: Role = "decode" if number % 2 else "prefill"
        if fleet.duty(shard) == "mixed":
            yield Assign(shard, duty)
