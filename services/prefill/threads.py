"""Runs arithmetic with more threads than those of the shard, where idle shards lend theirs."""

from collections.abc import Callable
from typing import TypeVar

import torch

from sps2.common.model.attend import Run

Result = TypeVar("Result")


def with_threads(run: Run, threads: int) -> Run:
    """`run`, with `threads` threads if they are more than those of this process."""
    own = torch.get_num_threads()
    if threads <= own:
        return run

    async def wider(work: Callable[[], Result]) -> Result:
        def widely() -> Result:
            torch.set_num_threads(threads)
            try:
                return work()
            finally:
                torch.set_num_threads(own)

        return await run(widely)

    return wider
