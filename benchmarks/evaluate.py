"""The evaluation: policies on simulated GPUs, and on a live cluster beside its simulation.

    python benchmarks/evaluate.py [--parts sets beside live] [--traces FOLDER]

Writes a record of each part to benchmarks/results, and docs/evaluation.md with its plots from them.
"""

import argparse
from pathlib import Path

import msgspec
import record
from evaluation import beside, live, run, tables
from evaluation.settings import ARRANGEMENTS, HARDWARE, SETS

PARTS = ("sets", "beside", "live")
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--hardware", nargs="+", type=int, default=range(len(HARDWARE)), metavar="NUMBER"
    )
    parser.add_argument("--sets", nargs="+", default=[each.name for each in SETS])
    parser.add_argument(
        "--traces", type=Path, help="folder of Mooncake's and the agents' traces; else their shapes"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "sets" in options.parts:
        chosen = [HARDWARE[place] for place in options.hardware]
        sets = [each for each in SETS if each.name in options.sets]
        found = [*run.points(chosen, sets, options.traces, options.seed)]
        made = {
            "policies": list(ARRANGEMENTS),
            "sets": {each.name: each.what for each in SETS},
            "has_traces": options.traces is not None,
            "seed": options.seed,
            "points": [msgspec.to_builtins(point) for point in found],
        }
        print(record.write("evaluation-sets", made))
    if "beside" in options.parts:
        print(record.write("evaluation-beside", {"rows": beside.rows(options.seed)}))
    if "live" in options.parts:
        print(record.write("evaluation-live", live.measured(options.seed, options.traces)))
    tables.write_page(ROOT / "docs", record.RESULTS)


if __name__ == "__main__":
    main()
