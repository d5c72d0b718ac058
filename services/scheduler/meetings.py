"""Where the stages of pipeline-parallel shards find each other."""

import asyncio
from collections.abc import AsyncGenerator

from sps2.common.errors import Invalid
from sps2.common.messages import Meet, Met
from sps2.services.tasks import forever


class Meetings:
    """Handler of `Meet`: answers all stages of a shard once all of them are there."""

    def __init__(self) -> None:
        self._here: dict[tuple[str, str], _Meeting] = {}

    async def meet(self, request: Meet) -> AsyncGenerator[Met, None]:
        if not 0 <= request.rank < request.size:
            raise Invalid(f"{request.shard} has no stage {request.rank} of {request.size}")
        key = request.shard, request.about
        meeting = self._here.setdefault(key, _Meeting())
        meeting.stages[request.rank] = request
        try:
            if len(meeting.stages) == request.size:
                del self._here[key]
                meeting.whole.set()
            await meeting.whole.wait()
            yield meeting.met()
            await forever()
        finally:
            if not meeting.whole.is_set() and meeting.stages.get(request.rank) is request:
                del meeting.stages[request.rank]


class _Meeting:
    def __init__(self) -> None:
        self.stages: dict[int, Meet] = {}
        self.whole = asyncio.Event()

    def met(self) -> Met:
        stages = [self.stages[rank] for rank in sorted(self.stages)]
        followers = (each.follower for each in stages)
        return Met(
            tuple(each.number for each in stages),
            tuple(each for each in followers if each is not None),
        )
