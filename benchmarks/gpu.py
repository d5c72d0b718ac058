"""Checks every GPU kernel against its definition on this machine's GPU, then times them.

    python benchmarks/gpu.py [--check] [--stages checks prefill ...] [--limit 60] [--seed 0]

Needs an NVIDIA GPU (Ampere or newer), torch and Triton, and nothing else: `sps2` need not be
installed. It runs in stages of about a minute, the most valuable ones first, and writes the record
under benchmarks/results/ after each, so that little time on a GPU is of use too. A stage begins no
new row after `--limit` seconds, and compiles what it needs within them. Stages, in order:

- checks: every kernel, in bfloat16 with head dims of 128 and 64.
- start: what a shard of Llama 3 8B does before it serves: launching every kernel once.
- prefill: causal attention in bfloat16, 32 heads with 8 for keys, of 128, beside the best of
  torch's own backends (flash, cuDNN).
- decode: one query per request over 32K keys each, as a share of the bandwidth of a plain copy.
- model: steps of decoding (as a CUDA graph) and prefill of a random model of 8B.
- few: few new tokens behind 128K keys, which are split, or not.
- csa: a last rank of four with 32K of 128K tokens attends to what it was sent of the 96K before:
  scores of probes, packing of the kept blocks, attention to them. Ideal is dense attention to those
  96K, times the share that is kept.
- relay: rows behind a prefix in common, read once for all, and for each.
- small: the next tokens, keys into pages, beside torch's operations.
- others: the checks of other head dims and dtypes.
- tiles: the fastest tiles of this GPU, kept in $SPS2_HOME/tiles.json, where the kernels look.
- peer: the model beside transformers, where it is installed, with sdpa and a static cache.

Times are medians by CUDA events. The exit code is 1 if a check fails, or was left out.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gpu_stages import Stage

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ("checks", "others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, time nothing")
    parser.add_argument("--stages", nargs="+", default=[], help="only these")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    import gpu_tree

    gpu_tree.importable(ROOT)
    from sps2.kernels import gpu

    if why := gpu.missing():
        sys.exit(f"bench-gpu needs an NVIDIA GPU, Ampere or newer, and Triton; here: {why}.")
    import triton
    from gpu_stages import run

    torch.manual_seed(options.seed)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    chosen = CHECKS if options.check else options.stages
    stages = [each for each in _stages() if not chosen or each.name in chosen]
    record: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
    }
    path = ROOT / "benchmarks" / "results" / f"{record['date']}-gpu.json"
    found, unfinished = run(stages, record, path, options.limit)
    print(f"\nwritten to {path.relative_to(ROOT)}")
    wrong = [row["check"] for name in CHECKS for row in found.get(name, []) if not row["right"]]
    if wrong:
        sys.exit(f"{len(wrong)} kernels differ from their definitions: {wrong}")
    if left := [name for name in CHECKS if name in unfinished]:
        sys.exit(f"not all was checked: {left}")


def _stages() -> "list[Stage]":
    import gpu_batch_times
    import gpu_checks
    import gpu_compare
    import gpu_model
    import gpu_times
    import gpu_tune
    from gpu_stages import Stage
    from gpu_timing import Row

    device = torch.device("cuda")

    def checks(shapes: gpu_compare.Shapes) -> Iterator[Row]:
        for name, error, limit in gpu_checks.run(device, shapes):
            right = error <= limit
            yield {"check": name, "error": f"{error:.1e}", "limit": limit, "right": right}

    prefill, few, decode, csa = gpu_times.stages(device)
    model, peer = gpu_model.stages(device)
    return [
        Stage("checks", "Kernels beside their definitions", lambda: checks(gpu_compare.USUAL)),
        Stage("start", "Every kernel of a shard once", lambda: gpu_model.start(device)),
        *(prefill, decode, model, few, csa),
        *gpu_batch_times.stages(device),
        Stage("others", "The other shapes", lambda: checks(gpu_compare.OTHERS)),
        Stage("tiles", "Tiles", lambda: gpu_tune.rows(device)),
        peer,
    ]


if __name__ == "__main__":
    main()
