"""A shard measures itself and its ways to others."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from sps2.common.device import Host
from sps2.common.messages import Measure
from sps2.common.model.attend import inline
from sps2.common.transport.ping import Pings
from sps2.common.transport.plane import Plane
from sps2.services.data_loop import DataLoop
from sps2.services.measuring import MeasuringService
from sps2.services.prefill import own_rate
from sps2.services.prefill.own_rate import own_gflops

from .world import tiny_model


async def test_a_shard_twice_as_slow_measures_half_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In virtual time: a row of a layer takes so long."""
    model, now_s, per_row_s = tiny_model(), [0.0], [1e-6]

    class Slow(Host):
        def mark(self) -> Callable[[], float]:
            at_s = now_s[0]
            return lambda: at_s

    forward = type(model).forward

    async def slow_forward(self: object, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        now_s[0] += per_row_s[0] * len(ids)
        return await forward(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "forward", slow_forward)
    fast = await own_gflops(model, Slow(), inline)
    layers = min(own_rate.LAYERS, model.config.layers)
    per_token = 2e-9 * model.config.products * layers / model.config.layers
    assert fast == pytest.approx(per_token / 1e-6)
    per_row_s[0] *= 2
    assert await own_gflops(model, Slow(), inline) == pytest.approx(fast / 2)


async def test_a_shallow_model_computes_the_first_layers() -> None:
    model = tiny_model()
    few = model.shallow(1)
    assert few.config.layers == len(few.config.windows) == 1
    seen = []

    async def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((layer, q))
        return q

    ids = torch.arange(9)
    await few.forward(ids, ids, attend)
    await model.forward(ids, ids, attend)
    assert [layer for layer, _ in seen] == [0, *range(model.config.layers)]
    assert torch.equal(seen[0][1], seen[1][1])
    assert model.shallow(99).config.layers == model.config.layers


async def test_both_are_measured_on_request() -> None:
    data, here, there = DataLoop(), Plane("here/1", "tcp"), Plane("there/1", "tcp")
    data.start()
    try:
        await data.run(here.start())
        await there.start()
        Pings(there)

        async def own() -> float:
            assert asyncio.get_running_loop() is data._loop
            return 7.0

        service = MeasuringService(Pings(here), data, own)
        assert (await service.measure(Measure(there.peer, computes=True))).gflops == 7
        measures = await service.measure(Measure(there.peer, computes=False))
        assert measures.gflops == 0
        assert measures.sent_gbit > 0
        assert measures.received_gbit > 0
        keeper = MeasuringService(service._pings, data, None)
        assert (await keeper.measure(Measure(there.peer, computes=True))).gflops == 0
    finally:
        await data.run(here.close())
        await there.close()
        await data.close()
