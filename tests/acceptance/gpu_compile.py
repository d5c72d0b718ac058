"""Every launch of the GPU kernels, compiled to machine code of GPUs that are not here.

    python tests/acceptance/gpu_compile.py [80 86 89 90 100 120] [--tiles] [--write]

Prints registers, spilled bytes and shared memory of the launches of a shard of Llama 3 8B, by
compute capability. Exit code 1 if a tile needs more shared memory than the GPU has for a program.

--tiles: only the largest tiles of attention, for head dims of 64, 128 and 256, and not down to
machine code.
--write: puts the table into docs/gpu.md.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from sps2.kernels.gpu import launches, tiles
from sps2.kernels.gpu.launches import Model

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"
BEGIN, END = "<!-- made by gpu_compile.py -->\n", "<!-- end -->\n"
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that a program can have, from NVIDIA's CUDA programming guide."""
NAMES = {80: "A100", 86: "RTX 30", 89: "L40, RTX 40", 90: "H100, H200", 100: "B200", 120: "RTX 50"}
LLAMA_8B = Model(32, 8, 128, 4096, 14336, torch.bfloat16, (False,), True)
CPU = torch.device("cpu")


class Absent:
    """A driver that knows its target and has no device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled(NamedTuple):
    """Tile sizes, as Triton's constants; registers per thread, spilled and shared bytes."""

    kernel: str
    tile: str
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int


@contextlib.contextmanager
def compiling(capability: int) -> Iterator[list[Compiled]]:
    """Launches are compiled for a GPU, once each, instead of being run."""
    found: dict[object, Compiled] = {}
    listed: list[Compiled] = []
    run, shared_bytes = JITFunction.run, tiles.shared_bytes
    limit = SHARED_KIB[capability] << 10

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> object:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = run(self, *args, warmup=True, **options)
        if id(kernel) not in found:
            found[id(kernel)] = made = _compiled(self.fn.__name__, kernel, options, log.getvalue())
            listed.append(made)
            kept.append(kernel)
        if found[id(kernel)].shared > limit:
            raise OutOfResources(found[id(kernel)].shared, limit, "shared memory")
        return kernel

    kept: list[object] = []
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.runtime.driver.set_active(Absent(capability))
    tiles.shared_bytes = lambda device: limit
    JITFunction.run = compile_only
    try:
        yield listed
    finally:
        JITFunction.run, tiles.shared_bytes = run, shared_bytes


def _compiled(name: str, kernel: Any, options: dict[str, Any], log: str) -> Compiled:
    tile = {key: options[key] for key in ("ROWS", "KEYS", "PACK", "BITS") if key in options}
    flags = [key.lower() for key in ("WINDOWED", "SCALED", "PLACED", "ADDED") if options.get(key)]
    words = [f"{key.lower()} {value}" for key, value in tile.items()] + flags
    meta = kernel.metadata
    registers = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes spill stores", log)
    return Compiled(
        name.removeprefix("_"),
        ", ".join(words),
        meta.num_warps,
        meta.num_stages,
        int(registers[1]) if registers else 0,
        int(spilled[1]) if spilled else 0,
        meta.shared,
    )


def attention(capability: int) -> list[Compiled]:
    """The largest tiles of attention, as far as their shared memory is known."""
    whole = CUDABackend.make_cubin
    CUDABackend.make_cubin = lambda *_: b""
    try:
        with compiling(capability) as listed:
            for dim in (64, 128, 256):
                model = Model(8, 2, dim, 64, 64, torch.bfloat16)
                for kind in (launches.prompts, launches.decoding):
                    *_, largest = kind(model, CPU)
                    largest()
    finally:
        CUDABackend.make_cubin = whole
    return listed


def everything(capability: int) -> list[Compiled]:
    with compiling(capability) as listed:
        for launch in launches.launches(LLAMA_8B, CPU):
            launch()
    return listed


def table(by_target: dict[int, list[Compiled]]) -> str:
    """A row per launch, a column per GPU: registers, spilled bytes if any, KiB of shared memory."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for target, listed in by_target.items():
        for each in listed:
            spilled = f" +{each.spilled} B" if each.spilled else ""
            cell = f"{each.registers}{spilled}, {-(-each.shared // 1024)}"
            rows.setdefault((each.kernel, each.tile), {})[target] = cell
    heads = [f"{NAMES[target]} (sm_{target})" for target in by_target]
    lines = [f"| kernel | tile | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for (kernel, tile), cells in sorted(rows.items()):
        lines.append(f"| {kernel} | {tile} | {' | '.join(cells.get(t, '') for t in by_target)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", type=int, default=list(SHARED_KIB))
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    by_target, wrong = {}, 0
    for target in sorted(options.targets):
        with tempfile.TemporaryDirectory() as empty:
            triton.knobs.cache.dir = empty  # ptxas tells of registers only when it runs
            listed = attention(target) if options.tiles else everything(target)
        by_target[target] = listed
        for each in listed:
            if each.shared > SHARED_KIB[target] << 10:
                wrong += 1
                print(f"sm_{target}: {each} needs more than {SHARED_KIB[target]} KiB", flush=True)
        kernels = {each.kernel for each in listed}
        print(f"sm_{target}: {len(listed)} launches of {len(kernels)} kernels compile", flush=True)
        if options.write:
            text = DOCS.read_text(encoding="utf-8")
            head, rest = text.split(BEGIN)
            DOCS.write_text(head + BEGIN + table(by_target) + END + rest.split(END)[1], "utf-8")
    print(table(by_target))
    if wrong:
        sys.exit(f"{wrong} launches need more shared memory than their GPU has.")


if __name__ == "__main__":
    main()
