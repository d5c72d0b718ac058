"""Checks every GPU kernel against its definition on this machine's GPU, then times the large ones.

    python benchmarks/gpu.py [--check] [--seed 0]

Needs an NVIDIA GPU (Ampere or newer), torch and Triton, and nothing else: `sps2` need not be
installed. Finds the fastest tiles of this GPU first and keeps them in $SPS2_HOME/tiles.json, where
the kernels look for them. Prints tables in Markdown and writes all figures as JSON under
benchmarks/results/.

- Prefill: causal attention in bfloat16, 32 heads with 8 for keys, of 128, beside the best of
  torch's own backends (flash, cuDNN).
- Decode: one query per request over 32K keys each, as a share of the bandwidth of a plain copy.
- CSA: a last rank of four with 32K of 128K tokens attends to what it was sent of the 96K before:
  scores of probes, packing of the kept blocks, attention to them. Ideal is dense attention to those
  96K, times the share that is kept.
- Relay: rows behind a prefix in common, read once for all, and for each.
- Model: prefill and steps of decoding (as a CUDA graph) of a random model of 8B, beside
  transformers where it is installed, with sdpa and a static cache.
- Small operations: the next tokens, keys into pages, beside torch's operations.

Times are medians by CUDA events.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, time nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    import gpu_tree

    gpu_tree.importable(ROOT)
    from sps2.kernels import gpu

    if why := gpu.missing():
        sys.exit(f"bench-gpu needs an NVIDIA GPU, Ampere or newer, and Triton; here: {why}.")
    import gpu_checks
    import gpu_model
    import gpu_times
    import gpu_tune

    torch.manual_seed(options.seed)
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    wrong = 0
    errors = {}
    for name, error, limit in gpu_checks.run(device):
        fine = error <= limit
        wrong += not fine
        errors[name] = error
        verdict = "ok   " if fine else "WRONG"
        print(f"{verdict} {name}: error {error:.1e}, limit {limit:.0e}", flush=True)
    print(f"\n{len(errors) - wrong} of {len(errors)} checks passed\n", flush=True)
    if not options.check:
        tuned = gpu_tune.run(device)
        _write(errors, {"tiles": tuned}, gpu_times.run(device) | gpu_model.run(device))
    if wrong:
        sys.exit(f"{wrong} kernels differ from their definitions.")


def _write(errors: dict[str, float], tuned: dict[str, object], times: Mapping[str, object]) -> None:
    import triton

    record = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
        "errors": errors,
        **tuned,
        **times,
    }
    path = ROOT / "benchmarks" / "results" / f"{record['date']}-gpu.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
