"""A process whose GPU can do no more ends, wherever the fault shows; others it survives."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sps2.common.errors import Internal
from sps2.services.data_loop import DataLoop
from sps2.services.gpu_faults import is_poisoned

from ..waiting import until
from .world import DecodeShard, World, greedy, tiny_model, world

ILLEGAL = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ILLEGAL, True),
        (ExceptionGroup("both", [ValueError("x"), ExceptionGroup("", [ILLEGAL])]), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling gemm"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling create"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
        (Internal("CUDA error"), False),
    ],
)
def test_which_faults_are_the_end(error: Exception, ends: bool) -> None:
    assert is_poisoned(error) == ends


PROGRAM = """
    import asyncio, torch
    from tests.services.world import greedy, tiny_model, world
    from sps2.common.device import Host

    class Poisoned(Host):
        async def down(self, tensors):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    async def main():
        async with world(tiny_model(), 1, 1) as shards:
            shards.decode[0].batch._exchange._plane.device = Poisoned()
            await shards.run("r", [1, 2, 3], greedy(20))

    asyncio.run(main())
"""


def test_a_shard_ends_when_a_step_shows_that_its_device_is_of_no_use() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "the GPU can do no more for this process; this process ends" in ended.stderr


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which this process would have ended."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


def _fails(*_: object, **__: object) -> Tensor:
    raise ILLEGAL


def at_a_question(shards: World, shard: DecodeShard) -> None:
    shard.pool.layer = _fails  # type: ignore[method-assign,assignment]


def at_a_deposit(shards: World, shard: DecodeShard) -> None:
    shard.pool.put = _fails  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("where", [at_a_question, at_a_deposit])
async def test_a_holder_ends_that_learns_it_from_what_others_want(
    where: Callable[[World, DecodeShard], None], ends: list[int]
) -> None:
    model = tiny_model()
    async with asyncio.timeout(60), world(model, 1, 2) as shards:
        where(shards, shards.decode[0])
        running = asyncio.create_task(shards.run("r", list(range(40)), greedy(20)))
        await until(lambda: ends)
        running.cancel()
        await asyncio.wait({running})
        assert set(ends) == {1}


async def test_a_process_ends_by_what_fails_on_its_data_loop(ends: list[int]) -> None:
    data = DataLoop()
    data.start()

    async def fails(error: Exception) -> None:
        raise error

    with pytest.raises(torch.OutOfMemoryError):
        await data.run(fails(torch.OutOfMemoryError("CUDA out of memory")))
    assert not ends
    with pytest.raises(torch.AcceleratorError):
        await data.run(fails(ILLEGAL))
    assert ends == [1]
    await data.close()
