"""How fast models with weights in different forms compute, and the memory they take.

    python benchmarks/blocks.py FOLDER FOLDER[:int4] ... [--rows 1 4 16 512] [--repeat 15] [--cpu]

The folders are those of `spsctl pull`; `:int8` or `:int4` makes weights of them as `--quantize`
does. Timed are all layers and the head, attention left out, of 1 to 16 rows as in decode steps, and
of more as in prefill. All models are in one process and take turns, so that whatever else the
machine does hits all. Printed are medians in ms, and how many times as fast each is as the first.
`--cpu` takes one thread and its CPU time instead of elapsed time, for machines that others use too.
Memory is the growth of the resident set of a process that loads one model and computes a prefill
and a step with it, mapped weights included.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from sps2.common.model.llama import Llama
from sps2.common.model.share import Quantize
from sps2.common.model.weights import load


async def without_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q


def loaded(name: str) -> Llama:
    folder, _, how = name.rpartition(":")
    if how in get_args(Quantize):
        return load(Path(folder), quantize=how)  # type: ignore[arg-type]
    return load(Path(name))


def timed_s(model: Llama, rows: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one pass of `rows` tokens; the head computes at most 16 rows, as in decode."""
    ids = torch.arange(rows) * 37 % model.config.vocab_size
    start = clock()
    hidden = asyncio.run(model.forward(ids, torch.arange(rows), without_attention))
    model.logits(hidden[:16] if rows <= 16 else hidden[-1:])
    return clock() - start


def memory() -> int:
    """The resident set of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) << 10


def taken(name: str) -> int:
    """Bytes that a process of its own needs for a model."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", name],
        env=os.environ,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare models with weights in several forms.")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 512])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu else options.threads)
    clock = time.thread_time if options.cpu else time.perf_counter
    if options.alone:
        before = memory()
        model = loaded(options.alone)
        timed_s(model, 512)
        timed_s(model, 1)
        return print(memory() - before)
    models = {name: loaded(name) for name in options.models}
    for rows in options.rows:
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(options.repeat):
            for name, model in models.items():
                times[name].append(timed_s(model, rows, clock))
        first = median(times[options.models[0]])
        for name, each in times.items():
            ratios = sorted(a / b for a, b in zip(times[options.models[0]], each, strict=True))
            spread = f"{ratios[len(ratios) // 10]:.2f} to {ratios[-1 - len(ratios) // 10]:.2f}"
            found = median(each)
            print(
                f"{rows:5} rows {found * 1e3:9.2f} ms {first / found:5.2f} ({spread})  {name}",
                flush=True,
            )
    for name in models:
        print(f"memory {taken(name) / 2**20:8.0f} MiB  {name}", flush=True)
    return None


if __name__ == "__main__":
    main()
