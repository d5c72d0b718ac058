"""A peer that is a library: a small program in its environment runs it, and is told what to do.

One JSON object a line, both ways. We send {"prompts": [[1, 2, ...], ...], "tokens": 8}; it writes
{"version": "..."} once it has loaded the model, then for each step {"rows": [0, 1]}, the prompts
that got a token, and {"done": true} after the last.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from peers.peer import NO_FIELDS, Fields, PeerFailed, Reply
from peers.process import Process


class Runner:
    """Drives `process`, which must be piped. One request at a time."""

    is_server = False

    def __init__(self, process: Process, start_s: float) -> None:
        self.process = process
        self.version = ""
        self._start_s = start_s

    async def start(self) -> None:
        await self.process.start()
        try:
            async with asyncio.timeout(self._start_s):
                self.version = (await self._event())["version"]
        except TimeoutError:
            raise PeerFailed(
                f"not ready in {self._start_s:.0f} s; {self.process.log_end()}"
            ) from None

    async def ask(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        replies: Sequence[Reply],
        fields: Fields = NO_FIELDS,
    ) -> None:
        assert not fields
        order = json.dumps({"prompts": [list(prompt) for prompt in prompts], "tokens": tokens})
        for reply in replies:
            reply.sent_s = time.perf_counter()
        await self.process.write(order.encode())
        while "done" not in (event := await self._event()):
            for row in event["rows"]:
                replies[row].arrive(1)
        if any(len(reply.stamps_s) != tokens for reply in replies):
            raise PeerFailed(f"too few tokens came; {self.process.log_end()}")

    async def stop(self) -> None:
        await self.process.stop()

    async def _event(self) -> dict[str, Any]:
        line = await self.process.read()
        if not line:
            raise PeerFailed(f"it ended; {self.process.log_end()}")
        event: dict[str, Any] = json.loads(line)
        return event
