"""TTFT where shards are on boxes that are not alike: slow processors, slow links.

    python benchmarks/boxes.py [--cases .5/.5/.25 .4x4 .2x8 .5/.1 drop 2x100 ...] [--repeats 3]

Every box is a network namespace whose link is shaped to a rate in both directions, with one mixed
shard, whose processor time is limited by a control group: to a share of a core, in periods of 5 ms
(of 10 ms for a tenth, since the kernel gives no less than 1 ms). Gateway, scheduler and KV
directory have a namespace of their own, and no limit. All services are the real ones, and nothing
is configured of what the boxes can do. Requests go through the HTTP API; what they took is what
`usage.sps2` says.

In each repeat every way runs in turn on one prompt: `chosen` is what the cluster does by itself,
`one` has SP degree 1, `all` that of all boxes. The ratio is that of `chosen` to the better of the
others, in the same repeat; "SP" is the median degree of `chosen`. For `drop`, three boxes are on
1 Gbit/s; then the link of one has 10 Mbit/s, and in the end 1 Gbit/s again.

It needs Linux with control groups of version 1, root and iproute2, and removes all that it made
however it ends. The tables are printed as Markdown, and written with all samples as JSON under
benchmarks/results/.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import msgspec
import record
from boxes_cpu import limits
from interrupt import cancel_on_signals
from links import text_of
from links_cluster import CONTROL, Spread, problem_of, spread
from links_network import Network, inside, network

from sps2.cli.effective import effective
from sps2.common.api import Completion
from sps2.common.api.usage import Sps2Usage
from sps2.common.config import Cluster

WAYS = ("chosen", "one", "all")
SHORT_TO_LONG = (64, 512, 2048, 7900)
WARM_UP_TOKENS = 256
SETTLE_S = 5.0
"""For the shards to measure themselves once all are there."""
DROPPED_MBIT, GOOD_MBIT = 10, 1000
RETURN_S = 30.0
"""How long a good link may take to be noticed: a slow one is probed every ten seconds."""


class Case(NamedTuple):
    """Boxes by their share of a core, all with links of one rate; 0 is unlimited."""

    shares: tuple[float, ...]
    mbit: int = 0
    tokens: tuple[int, ...] = (2048, 7900)


CASES: dict[str, Case] = {
    ".5/.5/.25": Case((0.5, 0.5, 0.25)),
    ".4x4": Case((0.4,) * 4),
    ".2x8": Case((0.2,) * 8),
    ".5/.1": Case((0.5, 0.1), 0, SHORT_TO_LONG),
    "2x100": Case((0.4,) * 2, 100),
    "4x100": Case((0.4,) * 4, 100),
    "2x1000": Case((0.4,) * 2, 1000),
    "4x1000": Case((0.4,) * 4, 1000),
    "drop": Case((0.5,) * 3, GOOD_MBIT, (2048,)),
}


class Sample(NamedTuple):
    """What one prompt took. way: as in the module's docstring, or for `drop` the time."""

    case: str
    tokens: int
    way: str
    repeat: int
    ttft_s: float
    sp_degree: int


class Asker:
    """Sends the prompts of one case to a cluster that is up, and appends what they took."""

    def __init__(
        self, up: Spread, name: str, cluster: Cluster, repeats: int, samples: list[Sample]
    ) -> None:
        self._up = up
        self._name = name
        self._text = text_of(cluster)
        self._repeats = repeats
        self._samples = samples

    async def warm_up(self, boxes: int) -> None:
        await self._usage(self._text[:WARM_UP_TOKENS], boxes)

    async def compare(self, tokens: int, boxes: int) -> None:
        """What the cluster chooses, one box, and all of them, in turn."""
        for repeat in range(self._repeats):
            for way, degree in zip(WAYS, (None, 1, boxes), strict=True):
                await self._ask(tokens, repeat, way, degree)

    async def drop(self, tokens: int, built: Network) -> None:
        """What the cluster chooses before, while and after the link of one box is slow."""
        for repeat in range(self._repeats):
            for number in (1, 2):
                await self._ask(tokens, repeat, f"before, {number}")
            built.shape(DROPPED_MBIT, ["mixed-1"])
            for number in (1, 2, 3):
                await self._ask(tokens, repeat, f"slow, {number}")
            built.shape(GOOD_MBIT, ["mixed-1"])
            await asyncio.sleep(RETURN_S)
            for number in (1, 2):
                await self._ask(tokens, repeat, f"good again, {number}")

    async def _ask(self, tokens: int, repeat: int, way: str, degree: int | None = None) -> None:
        start = repeat * tokens % (len(self._text) - tokens)
        usage = await self._usage(self._text[start : start + tokens], degree)
        ttft_s = usage.ttft_ms / 1e3
        self._samples.append(Sample(self._name, tokens, way, repeat, ttft_s, usage.sp_degree))
        said = f"{ttft_s:.2f} s, SP {usage.sp_degree}"
        print(f"{self._name}, {tokens} tokens, {way}: {said}", flush=True)

    async def _usage(self, prompt: list[int], degree: int | None) -> Sps2Usage:
        body = {
            "prompt": prompt,
            "max_tokens": 2,
            "temperature": 0,
            "ignore_eos": True,
            "sps2": {} if degree is None else {"sp_degree": degree},
        }
        answer = await self._up.post("/v1/completions", body)
        answer.raise_for_status()
        usage = msgspec.json.decode(answer.content, type=Completion).usage.sps2
        assert usage is not None
        return usage


async def measure(options: argparse.Namespace, samples: list[Sample]) -> None:
    """Run every case, and append what prompts took to `samples`."""
    cancel_on_signals()
    for name in options.cases:
        case = CASES[name]
        boxes = len(case.shares)
        with made(case) as (built, cgroups), inside(built.hosts[CONTROL]):
            cluster = _cluster(options, case)
            async with spread(cluster, built.hosts, cgroups) as up:
                await up.ready()
                asker = Asker(up, name, cluster, options.repeats, samples)
                await asker.warm_up(boxes)
                await asyncio.sleep(SETTLE_S)
                for tokens in options.tokens or case.tokens:
                    if name == "drop":
                        await asker.drop(tokens, built)
                    else:
                        await asker.compare(tokens, boxes)


@contextmanager
def made(case: Case) -> Iterator[tuple[Network, dict[str, str]]]:
    """The boxes of a case, and the control group of each shard."""
    names = [f"mixed-{index}" for index in range(len(case.shares))]
    shares = dict(zip(names, case.shares, strict=True))
    with network([CONTROL, *names]) as built, limits(shares) as cgroups:
        built.shape(case.mbit)
        yield built, cgroups


def _cluster(options: argparse.Namespace, case: Case) -> Cluster:
    longest = max(*(options.tokens or case.tokens), WARM_UP_TOKENS)
    return effective(
        None,
        name="boxes",
        model=options.model,
        mixed=len(case.shares),
        threads=1,
        transport="tcp",
        kv={
            "pool_tokens": 4 * longest,
            "prefix_cache": False,
        },
    )


def table(samples: list[Sample]) -> str:
    """As Markdown: a row for each case and length; of `drop`, for each time."""
    lines = ["| boxes | tokens | chosen | one | all | SP | ratio |", "|---" * 7 + "|"]
    dropped = ["| link of one box | TTFT | SP |", "|---" * 3 + "|"]
    for case, tokens in dict.fromkeys((each.case, each.tokens) for each in samples):
        found: dict[str, list[Sample]] = {}
        for each in samples:
            if (each.case, each.tokens) == (case, tokens):
                found.setdefault(each.way, []).append(each)
        seconds = {way: median(each.ttft_s for each in own) for way, own in found.items()}
        degrees = {way: median(each.sp_degree for each in own) for way, own in found.items()}
        if "chosen" not in found:
            dropped += [f"| {way} | {seconds[way]:.2f} s | {degrees[way]:g} |" for way in found]
            continue
        ratios = [
            chosen.ttft_s / min(one.ttft_s, every.ttft_s)
            for chosen, one, every in zip(*(found.get(way, []) for way in WAYS), strict=False)
        ]
        cells = [
            f"{seconds[way]:.2f} s" if way in seconds else "" for way in ("chosen", "one", "all")
        ]
        ratio = f"{median(ratios):.2f}" if ratios else ""
        lines.append(
            f"| {case} | {tokens} | {' | '.join(cells)} | {degrees['chosen']:g} | {ratio} |"
        )
    tables = [each for each in (lines, dropped) if len(each) > 2]
    return "\n\n".join("\n".join(each) for each in tables)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--tokens", nargs="+", type=int, help="instead of those of each case")
    parser.add_argument("--repeats", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--model", default="smollm2-135m")
    return parser.parse_args()


def main() -> None:
    options = _options()
    samples: list[Sample] = []
    problem = problem_of(measure(options, samples))
    if samples:
        print(table(samples))
        found: dict[str, object] = {
            "options": vars(options),
            "samples": [each._asdict() for each in samples],
        }
        print(f"written to {record.write('boxes', found)}")
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    main()
