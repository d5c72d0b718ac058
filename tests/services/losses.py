"""What the loss of one process does to shards of several, be they stages or have heads each."""

import asyncio
from collections.abc import Sequence

import pytest

from sps2.common.errors import PeerLost
from sps2.common.model.llama import Llama

from .teams import Teams
from .world import greedy, oracle


async def a_lost_process_fails_what_it_held(
    cluster: Teams, rank: int, model: Llama, prompt: list[int]
) -> None:
    """A process of the first of two decode shards is lost: the other answers what it has alone."""
    local = [4]
    _, answer = await oracle(model, local, 100)

    async def lose() -> None:
        while len(cluster.tokens) < 20:
            await asyncio.sleep(0.001)
        await cluster.decode[0][rank].plane.close()

    results = await asyncio.gather(
        cluster.run("spread", prompt, greedy(400)),
        cluster.run("local", local, greedy(100)),
        lose(),
        return_exceptions=True,
    )
    assert isinstance(results[0], PeerLost)
    assert not isinstance(results[1], BaseException)
    assert [token.id for token in results[1]] == answer


async def a_failed_prefill_ends_in_all(
    cluster: Teams, sent: Sequence[str], model: Llama, prompt: list[int]
) -> None:
    """Prefills are cancelled once the second shard has sent something; then it loses a process.

    Args:
        sent: the counters of what it sends.
    """
    _, answer = await oracle(model, prompt, 4)
    for _ in range(3):
        running = asyncio.create_task(cluster.run("r", prompt, greedy(4)))
        while not any(plane.counters[each] for plane, _ in cluster.prefill[1] for each in sent):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
    tokens = await cluster.run("s", prompt, greedy(4))
    assert [token.id for token in tokens] == answer
    await cluster.prefill[1][1][0].close()
    with pytest.raises(PeerLost):
        await cluster.run("t", prompt, greedy(4))
