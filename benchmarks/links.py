"""TTFT of each prefill method where shards are on machines of their own, with slow links.

    python benchmarks/links.py [--rates 100 1000 0] [--tokens 2048 4096 7900] [--degrees 2 4]

Every shard gets a host of this machine's making: a network namespace whose link is shaped to a rate
in both directions. One more host has the gateway, the scheduler and the KV directory, and all
services are the real ones. Requests go through the HTTP API; what they took is what `usage.sps2`
says. In each repeat all methods run in turn on one prompt, so that whatever else the machine does
hits all; every repeat has a prompt of its own. A ratio is to the baseline: the exact ring that
transfers and computes serially, unless `--baseline` says otherwise. An answer has two tokens: the
second waits for the KV that goes to decode shards. The table is printed as Markdown, and written
with all samples as JSON under benchmarks/results/; "cores taken" says how many worked for other
processes meanwhile.

It needs Linux, root (or the capabilities SYS_ADMIN and NET_ADMIN) and iproute2, and removes all
that it made however it ends. Hosts share this machine's cores: TTFT falls with the SP degree only
while there are cores for the shards.
"""

import argparse
import doctest
import inspect
import itertools
import sys
import time
from collections.abc import AsyncIterator

import httpx
import msgspec
from interrupt import cancel_on_signals
from links_cluster import CONTROL, Spread, host_names, problem_of, spread
from links_network import inside, network
from links_report import Sample, Setting, rows, table, write
from machine import busy_s

from sps2.cli.effective import effective
from sps2.common.api import Completion, ErrorBody
from sps2.common.api.usage import Sps2Usage
from sps2.common.config import Cluster
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

BASELINE = "ring-by-turns"
CASES: dict[str, dict[str, object]] = {
    BASELINE: {"method": "ring", "pipelined": False},
    "ring": {"method": "ring"},
    "gather": {"method": "gather"},
    "gather-lossless": {"method": "gather", "lossless": True},
    "gather-auto": {"method": "gather", "lossless": None},
    "gather-int8": {"method": "gather", "kv_transfer_dtype": "int8"},
    "ulysses": {"method": "ulysses"},
    "usp": {"method": "usp"},
    "pass_q": {"method": "pass_q"},
    "balanced": {"attention": "balanced"},
    "fast": {"attention": "fast"},
}
"""The `sps2` object of a request, but for its SP degree; exact and plain unless it says more."""
PLAIN = {"lossless": False}
WARM_UP_TOKENS = 512


async def measure(options: argparse.Namespace, samples: list[Sample]) -> None:
    """Bring hosts and clusters up, run every request, and append what it took to `samples`."""
    cancel_on_signals()
    names = host_names(max(options.degrees), options.decode)
    with network(names) as built, inside(built.hosts[CONTROL]):
        for rate in options.rates:
            built.shape(rate)
            cluster = _cluster(options, rate)
            text = text_of(cluster)
            async with spread(cluster, built.hosts) as up:
                await up.ready()
                print("warm-up", flush=True)
                for case in _cases(options):
                    wanted = PLAIN | CASES[case] | {"sp_degree": cluster.prefill}
                    await _ask(up, text[:WARM_UP_TOKENS], wanted)
                for tokens, degree in itertools.product(options.tokens, options.degrees):
                    setting = Setting(rate, tokens, degree)
                    print(setting, flush=True)
                    async for sample in _repeats(up, setting, text, options):
                        samples.append(sample)
                        print(f"  {sample}", flush=True)


def _cluster(options: argparse.Namespace, rate: int) -> Cluster:
    """The cluster on links of `rate` Mbit/s, which it is told, as an operator would."""
    return effective(
        None,
        name="links",
        model=options.model,
        prefill=max(options.degrees),
        decode=options.decode,
        threads=options.threads,
        transport=options.transport,
        sharing={"link_gbit": rate / 1000} if rate else {},
        kv={
            "pool_tokens": 2 * max(*options.tokens, WARM_UP_TOKENS),
            "prefix_cache": False,  # the same prompts are computed again and again
        },
    )


async def _repeats(
    up: Spread, setting: Setting, text: list[int], options: argparse.Namespace
) -> AsyncIterator[Sample]:
    for number in range(options.repeats):
        start = number * setting.tokens % (len(text) - setting.tokens)
        prompt = text[start : start + setting.tokens]
        for case in _cases(options):
            wanted = PLAIN | CASES[case] | {"sp_degree": setting.sp_degree}
            since_s, busy, ours = time.monotonic(), busy_s(), up.cpu_s()
            usage, refusal = await _ask(up, prompt, wanted)
            took_s, others = time.monotonic() - since_s, busy_s() - busy - (up.cpu_s() - ours)
            cores = max(0.0, others) / took_s
            yield Sample(setting, case, number, usage, refusal, cores, took_s)


def _cases(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys([options.baseline, *options.methods]))


async def _ask(
    up: Spread, prompt: list[int], wanted: dict[str, object]
) -> tuple[Sps2Usage | None, str]:
    """What a prompt took, or why the cluster refuses it."""
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True, "sps2": wanted}
    answer = await up.post("/v1/completions", body)
    if answer.status_code == httpx.codes.BAD_REQUEST:
        return None, msgspec.json.decode(answer.content, type=ErrorBody).error.message
    answer.raise_for_status()
    return msgspec.json.decode(answer.content, type=Completion).usage.sps2, ""


def text_of(cluster: Cluster) -> list[int]:
    """Tokens of real text: the source of a module of Python's, which has long docstrings."""
    return Tokenizer(locate(cluster.model)).encode(inspect.getsource(doctest))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rates", nargs="+", type=int, default=[100, 1000, 0], help="Mbit/s; 0 is no limit"
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 7900])
    parser.add_argument("--degrees", nargs="+", type=int, default=[2, 4], help="SP degrees")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="METHOD",
        help=f"of {', '.join(CASES)}; the baseline always runs",
    )
    parser.add_argument("--baseline", choices=CASES, default=BASELINE, metavar="METHOD")
    parser.add_argument("--repeats", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--decode", type=int, default=2, help="decode shards")
    parser.add_argument("--threads", type=int, default=1, help="of each shard")
    parser.add_argument("--transport", choices=["tcp", "ucx"], default="tcp")
    return parser.parse_args()


def main() -> None:
    options = _options()
    samples: list[Sample] = []
    problem = problem_of(measure(options, samples))
    if found := rows(samples, options.baseline):
        print(table(found))
        print(f"written to {write(samples, found, vars(options))}")
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    main()
