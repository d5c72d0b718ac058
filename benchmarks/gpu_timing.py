"""How the GPU benchmarks time, and the shape of the layer that they time: Llama 3's of 8B."""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

Row = dict[str, object]
HEADS, KV_HEADS, DIM = 32, 8, 128
DTYPE = torch.bfloat16


def random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE, device=device)


def milliseconds(work: Callable[[], object], repeat: int = 15) -> float:
    """The median of runs, after some to warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeat):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(median(times))


def show(title: str, rows: list[Row]) -> None:
    """Print a table in Markdown; rows with other columns begin another one."""
    print(f"\n{title}")
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print(f"| {' | '.join(str(value) for value in row.values())} |", flush=True)
