"""A shard that measures itself, and its ways to others, for the scheduler's predictions."""

from collections.abc import Awaitable, Callable

from sps2.common.messages import Measure, Measures
from sps2.common.transport.ping import Pings
from sps2.services.data_loop import DataLoop


class MeasuringService:
    """The handler of `Measure`.

    Args:
        pings: of the shard's data plane, which runs on `data`.
        own_gflops: measures the shard's rate on the data loop; None if it does not prefill.
    """

    def __init__(
        self, pings: Pings, data: DataLoop, own_gflops: Callable[[], Awaitable[float]] | None
    ) -> None:
        self._pings = pings
        self._data = data
        self._own_gflops = own_gflops

    async def measure(self, request: Measure) -> Measures:
        return await self._data.run(self._measure(request))

    async def _measure(self, request: Measure) -> Measures:
        way = await self._pings.measure(request.partner)
        computes = request.computes and self._own_gflops is not None
        gflops = await self._own_gflops() if computes and self._own_gflops else 0.0
        return Measures(gflops, *way)
