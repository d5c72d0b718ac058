"""CUDA graphs: repeated work of a GPU is recorded once, and replayed by a single launch."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

WARM = 2
"""Warm-up runs before recording, in which kernels are compiled and libraries initialised."""


class Graphs:
    """Records work of one GPU as CUDA graphs that share a memory pool; for use by one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record `work`. A replay reads the same memory again, and returns the same tensors.

        Other threads may go on meanwhile. `work` must not synchronise, and the tensors that it
        reads and writes must stay at their addresses.
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
