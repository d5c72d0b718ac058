"""CUDA graphs: repeated work of a GPU is recorded once, and replayed by a single launch."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Graphs:
    """Records work of one GPU as CUDA graphs that share a memory pool; for use by one thread.

    All are recorded on one stream: libraries keep a workspace for every stream. Unlike
    `torch.cuda.graph`, nothing is synchronised, collected or given back between two of them, since
    a model has hundreds.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._beside = torch.cuda.Stream(device)
        torch.cuda.synchronize(device)
        gc.collect()

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record `work`, after running it once for what libraries initialise at first use.

        A replay reads the same memory again, and returns the same tensors. Other threads may go on
        meanwhile. `work` must not synchronise, and the tensors that it reads and writes must stay
        at their addresses.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream()
            self._beside.wait_stream(usual)
            with torch.cuda.stream(self._beside):
                work()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    result = work()
                finally:
                    graph.capture_end()
            usual.wait_stream(self._beside)

        def replayed() -> Result:
            graph.replay()
            return result

        return replayed
