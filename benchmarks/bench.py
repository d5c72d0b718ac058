"""SPS2 beside vLLM, llama.cpp and transformers: the same weights, prompts and number of threads.

    python benchmarks/bench.py [--peers sps2 vllm] [--parts ttft tbt] [--lengths 2048 8000]

All peers are up together, and each measurement is made of all in turn, so that whatever else the
machine does hits all; where memory is short for that, or with --one-at-a-time, one is up at a time,
interleaved as well. SPS2 and vLLM are asked over HTTP, the others are run by a small program in
their own environment; every time is taken here, as tokens come in. SPS2 is two prefill and two
decode shards (`sps2`; `sps2-int4` with weights in 4 bits), or two that do both (`sps2-mixed`), each
with half of the threads (a request's prefill and its decoding take turns).

A table of medians is printed as Markdown, with the ratio of the first peer's to each other's in
brackets, and all samples are written as JSON under benchmarks/results/. Parts are

    ttft     time to first token of one request, for each of --lengths
    tbt      time between tokens of one request after a prompt of --context tokens
    streams  --streams such requests at once: tokens per second, time between tokens, and the
             longest stall of any of them while the prompt of a newcomer is computed
    beside   time to first token of short prompts, two a second, alone and beside a long one; of the
             long one alone and beside them; and whether a prompt of middle length overtakes it
    turns    time to first token of a conversation's second turn; of vLLM with prefix caching
    agents   the first eight of --conversations, an agents' trace with lengths / 16 and a tenth of
             the pauses, as `spsctl bench serve` sends them; of vLLM with prefix caching
    start    from the start of the process until requests are served, and until a first token
    memory   most memory of all processes (proportional set size) while --memory-context tokens
             and an answer are computed

`make peers` (benchmarks/peers/install.sh) installs them; those that are not there are left out.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from bench_report import cells, table, write
from bench_run import Run
from interrupt import cancel_on_signals
from peers.known import EVERY, KINDS, Setup
from prompts import Prompts

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer


async def measure(run: Run) -> None:
    cancel_on_signals()
    await run.all()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="PEER",
        help=f"of {', '.join(KINDS)}",
    )
    parser.add_argument("--parts", nargs="+", choices=EVERY, default=EVERY, metavar="PART")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=int,
        default=[512, 2048, 4096, 8000],
        metavar="N",
        help="tokens of ttft's prompts",
    )
    parser.add_argument("--context", type=int, default=2048, help="of tbt and streams")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument(
        "--newcomers",
        nargs="+",
        type=int,
        default=[2048, 8000],
        metavar="N",
        help="tokens of their prompts",
    )
    parser.add_argument("--tokens", type=int, default=64, help="decoded to measure TBT")
    parser.add_argument(
        "--beside",
        nargs=3,
        type=int,
        default=[64, 3000, 7600],
        metavar=("SHORT", "MIDDLE", "LONG"),
        help="tokens of beside's prompts",
    )
    parser.add_argument("--conversation", type=int, default=6000, help="tokens of the first turn")
    parser.add_argument(
        "--conversations",
        type=Path,
        metavar="FILE",
        help="of agents; without it no agents are sent",
    )
    parser.add_argument("--memory-context", type=int, default=8000, help="of memory")
    parser.add_argument("--repeat", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--threads", type=int, default=2, help="in all, for each peer")
    parser.add_argument("--one-at-a-time", action="store_true", help="even if memory allows more")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--peers-folder", type=Path, default=Path(".peers"), metavar="DIR")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS")
    return parser.parse_args()


def _check(options: argparse.Namespace, context: int) -> None:
    """Raises Invalid if a prompt and its answer are too long for the model."""
    longest = {
        "--lengths": max(options.lengths) + 2,
        "--context": options.context + options.tokens + 1,
        "--conversation": options.conversation + options.tokens + 128,
        "--memory-context": options.memory_context + options.tokens,
        "--beside": max(options.beside) + 8,
        "--newcomers": max(options.newcomers) + 1,
    }
    for name, tokens in longest.items():
        if tokens > context:
            raise Invalid(f"{name}: {tokens} tokens with the answer, the model takes {context}")


def main() -> None:
    options = _options()
    try:
        folder = locate(options.model)
        context = read(folder).max_context
        _check(options, context)
        prompts = Prompts(Tokenizer(folder))
    except Invalid as error:
        sys.exit(str(error))
    peers_folder = options.peers_folder.absolute()
    logs = peers_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        options.model,
        folder.absolute(),
        options.threads,
        context,
        peers_folder,
        logs,
        options.start_timeout,
    )
    if options.conversations is None:
        options.parts = [part for part in options.parts if part != "agents"]
    run = Run(setup, options, prompts)
    try:
        asyncio.run(measure(run))
    except Invalid as error:
        run.problems.append(str(error))
    except asyncio.CancelledError:
        run.problems.append("interrupted")
    baseline = options.peers[0]
    if found := cells(run.samples, baseline):
        print(f"\n{table(found, baseline)}")
        kept = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
        print(f"written to {write(run.samples, found, kept, run.versions, run.problems)}")
    if run.problems:
        sys.exit("\n".join(["", *run.problems]))


if __name__ == "__main__":
    main()
