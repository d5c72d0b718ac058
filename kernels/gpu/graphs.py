"""Work of a GPU that is always the same, recorded once: a launch in place of many."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

WARM = 2
"""Times that work is done before it is recorded: kernels are compiled, libraries set up."""


class Graphs:
    """Records work of one GPU as CUDA graphs, which share their memory; used by one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """`work`, on what lies now where it reads; its result lies where it lay the first time.

        Other threads may go on meanwhile. `work` may wait for nothing, and what it reads and writes
        must stay where it is.
        """
        with torch.cuda.device(self._device):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(WARM):
                    work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work()

        def replayed() -> Result:
            graph.replay()
            return result

        return replayed
