"""Tests a data plane by a real exchange, in its own process: `python -m sps2.cli.loopback ucx`.

`spsctl doctor` runs it, so that a library that crashes or hangs affects only this process.
"""

import asyncio
import json
import sys
import time
from typing import cast

import torch

from sps2.common.errors import ServiceError
from sps2.common.transport.backends import BackendName, choose
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane

MEBIBYTES = 8
ROUNDS = 4


async def exchange(backend: BackendName) -> float:
    """Send tensors between two planes and compare them; returns GB/s of the best round.

    Raises:
        ServiceError: the planes cannot be opened, or what arrived is not what was sent.
    """
    here, there = Plane("doctor/here", backend), Plane("doctor/there", backend)
    try:
        await here.start()
        await there.start()
        here.introduce(there.peer)
        inbox = there.open("doctor", 0)
        best_s = float("inf")
        for round_ in range(ROUNDS):
            sent = torch.randn(MEBIBYTES << 19).to(torch.bfloat16)
            frame = frame_for("probe", ("doctor",), (0,), 0, round_, (sent,))
            since_s = time.perf_counter()
            _, arrived = await asyncio.gather(
                here.send(there.name, frame, [sent]), inbox.recv("probe", 0, round_, here.name)
            )
            best_s = min(best_s, time.perf_counter() - since_s)
            if not torch.equal(arrived[0], sent):
                raise ServiceError("what arrived is not what was sent")
        return (MEBIBYTES << 20) / best_s / 1e9
    finally:
        await here.close()
        await there.close()


def main() -> None:
    """Print as JSON which data plane `auto` chooses and why, or whether a backend works."""
    backend = sys.argv[1]
    try:
        if backend == "auto":
            choice = choose("auto")
            answer: dict[str, object] = {"backend": choice.backend, "reason": choice.reason}
        else:
            name = cast(BackendName, backend)
            answer = {"gb_per_s": asyncio.run(asyncio.wait_for(exchange(name), 15.0))}
    except (ServiceError, ImportError, OSError, TimeoutError) as error:
        answer = {"error": str(error) or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
