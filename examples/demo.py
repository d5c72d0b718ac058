"""A question about a long document, answered by a cluster of four shards on this machine.

    python examples/demo.py [--transport auto|ucx|tcp] [--prefill 2] [--decode 2]

It pulls the model, brings the cluster up, asks, and stops everything again. `make demo` runs it.
"""

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sps2.cli.local import running_cluster
from sps2.common.client import Client, Turn
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus
from sps2.common.pull import pull
from sps2.common.usage import Usage

MODEL = "smollm2-135m"
DOCUMENT = Path(__file__).parent / "constitution.txt"
QUESTION = "What are the three branches of government in this document, and what does each do?"

console = Console(highlight=False)


def pull_model() -> None:
    """Download and convert the model, unless it is there."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"pulling {MODEL}")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or 1)

        pull(MODEL, show)


def ask(client: Client, question: str) -> tuple[Usage, list[float]]:
    """Stream the answer to the console; returns its usage and when each piece came."""
    times: list[float] = []
    turn: Turn = {"role": "user", "content": question}
    with console.status("reading the document") as waiting:
        for chunk in client.chat_stream([turn], max_tokens=96, temperature=0):
            for choice in chunk.choices:
                if choice.delta.content:
                    waiting.stop()
                    times.append(time.perf_counter())
                    console.print(choice.delta.content, end="", markup=False, style="cyan")
            usage = chunk.usage or None
    console.print()
    assert usage, "the last chunk has the usage"
    return usage, times


def report(usage: Usage, times: list[float], cluster: ClusterStatus) -> Table:
    """What happened, as a table."""
    happened = usage.sps2
    assert happened is not None
    gaps = [after - before for before, after in pairwise(times)]
    table = Table(title="What happened", show_header=False)
    transports = sorted({shard.transport for shard in cluster.shards if shard.transport})
    table.add_row("data plane", "/".join(transports))
    table.add_row("prompt", f"{usage.prompt_tokens} tokens")
    table.add_row("answer", f"{usage.completion_tokens} tokens")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=["auto", "ucx", "tcp"], default="auto")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    flags = vars(parser.parse_args())

    pull_model()
    console.print(f"bringing up {flags['prefill']} prefill and {flags['decode']} decode shards ...")
    with running_cluster(name="demo", model=MODEL, **flags) as client:
        console.print(f"\n[bold]{QUESTION}[/] (about {DOCUMENT.name})\n")
        usage, times = ask(client, f"{DOCUMENT.read_text(encoding='utf-8')}\n\n{QUESTION}")
        console.print(report(usage, times, client.status()))
    console.print(f"Everything is stopped again. {MODEL} is small: do not ask it for legal advice.")


if __name__ == "__main__":
    try:
        main()
    except ServiceError as error:
        sys.exit(f"the demo failed: {error}")
