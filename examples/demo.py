"""A question about a long document, answered by a cluster of four shards on this machine.

    python examples/demo.py [--transport auto|ucx|tcp] [--prefill 2] [--decode 2]

It pulls the model, brings the cluster up, asks, compares the time to the first token with one
prefill shard, with all, and with sparse attention, and stops everything again. `make demo` runs it.
"""

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sps2.cli import prefill_bar
from sps2.cli.local import running_cluster
from sps2.cli.pull import fetched
from sps2.cli.top.format import bar
from sps2.cli.wrapping import Wrapped
from sps2.common.api import Extension
from sps2.common.api.usage import Usage
from sps2.common.client import Client, Turn
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus, Setting

MODEL = "smollm2-135m"
DOCUMENT = Path(__file__).parent / "constitution.txt"
ANSWER_TOKENS = 96
BAR_CELLS = 24
QUESTION = "What are the three branches of government in this document, and what does each do?"

console = Console(highlight=False)


def ask(client: Client, question: str) -> tuple[Usage, list[float], bool]:
    """Stream the answer to the console; returns its usage, when each piece came, and whether it
    was cut at its limit."""
    times: list[float] = []
    is_cut = False
    turn: Turn = {"role": "user", "content": question}
    progress = Extension(progress=True)

    answer = Wrapped(console.width if console.is_terminal else None, sys.stdout.write)
    with prefill_bar.shown() as waiting:
        for chunk in client.chat_stream(
            [turn], max_tokens=ANSWER_TOKENS, temperature=0, sps2=progress
        ):
            waiting.take(chunk)
            for choice in chunk.choices:
                is_cut |= choice.finish_reason == "length"
                if choice.delta.content:
                    times.append(time.perf_counter())
                    answer.add(choice.delta.content)
                    sys.stdout.flush()
            usage = chunk.usage or None
    console.print()
    assert usage, "the last chunk has the usage"
    return usage, times, is_cut


def report(usage: Usage, times: list[float], is_cut: bool, cluster: ClusterStatus) -> Table:
    """What happened, as a table."""
    happened = usage.sps2
    assert happened is not None
    gaps = [after - before for before, after in pairwise(times)]
    table = Table(title="What happened", show_header=False)
    transports = sorted({shard.transport for shard in cluster.shards if shard.transport})
    table.add_row("data plane", "/".join(transports))
    table.add_row("prompt", f"{usage.prompt_tokens} tokens")
    cut = f", cut at its limit of {ANSWER_TOKENS}" if is_cut else ""
    table.add_row("answer", f"{usage.completion_tokens} tokens{cut}")
    table.add_row("time to first token", f"{happened.ttft_ms / 1000:.2f} s")
    table.add_row("time between tokens", f"{1000 * statistics.median(gaps):.1f} ms (median)")
    table.add_row("SP degree of prefill", f"{happened.sp_degree} shards")
    for place in happened.placements:
        what = "KV, and runs the layers" if place.shard == happened.owner else "KV"
        tokens = f"tokens {place.span.start} to {place.span.stop}"
        table.add_row(f"{place.shard} holds", f"{tokens} ({what})")
    for kind, moved in (
        ("KV between prefill shards", happened.exchange_bytes),
        ("KV from prefill to decode", happened.deposit_bytes),
        ("queries while decoding", happened.q_bytes),
        ("states while decoding", happened.state_bytes),
    ):
        table.add_row(kind, "not told" if moved is None else f"{moved / 2**20:.2f} MiB")
    return table


def compared(client: Client, question: str, shards: int) -> Table:
    """The time to the first token of one question, read by one prefill shard and by all of them."""
    ways: list[tuple[str, int, Setting]] = [("1 prefill shard", 1, "exact")]
    if shards > 1:
        ways += [
            (f"{shards} prefill shards", shards, "exact"),
            (f"{shards} with sparse attention", shards, "balanced"),
        ]
    found = []
    for name, sp_degree, attention in ways:
        console.print(f"the first token again: {name} ...", style="dim")
        how = Extension(sp_degree=sp_degree, attention=attention)
        answer = client.chat(question, max_tokens=1, sps2=how, cache_salt=name)  # nothing cached
        assert answer.usage.sps2 is not None
        found.append((name, answer.usage.sps2))
    table = Table(title="Time to the first token", box=None)
    for header in ("", "", "", "sent between them"):
        table.add_column(header)
    longest_ms = max(spent.ttft_ms for _, spent in found)
    for name, spent in found:
        table.add_row(
            name,
            bar(BAR_CELLS, spent.ttft_ms / longest_ms, "cyan"),
            f"{spent.ttft_ms / 1000:.2f} s",
            f"{spent.exchange_bytes / 2**20:.1f} MiB",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=["auto", "ucx", "tcp"], default="auto")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    flags = vars(parser.parse_args())
    shards = flags["prefill"]

    fetched(MODEL)
    console.print(f"bringing up {shards} prefill and {flags['decode']} decode shards ...")
    with running_cluster(name="demo", model=MODEL, **flags) as client:
        console.print(f"\n[bold]{QUESTION}[/] (about {DOCUMENT.name})\n")
        question = f"{DOCUMENT.read_text(encoding='utf-8')}\n\n{QUESTION}"
        usage, times, is_cut = ask(client, question)
        console.print(report(usage, times, is_cut, client.status()))
        console.print(compared(client, question, shards))
    console.print(
        "Sparse attention saves bytes: it gains time where links are slow, as `make bench-links` "
        f"shows.\nEverything is stopped again. {MODEL} is small: do not ask it for legal advice."
    )


if __name__ == "__main__":
    try:
        main()
    except ServiceError as error:
        sys.exit(f"the demo failed: {error}")
