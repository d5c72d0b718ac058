"""`spsctl scheduler`: records the scheduler's events, and replays a recording."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import render
from sps2.cli.simulator.replaying import DirectoryReplay
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import Record
from sps2.services.scheduler.event_log import Entry
from sps2.services.scheduler.replay import Recording

FileArgument = Annotated[Path, typer.Argument(help="A file of JSON lines.", dir_okay=False)]


def record(
    file: FileArgument,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long to record; 0 writes only what the scheduler remembers.",
            show_default="until Ctrl-C",
        ),
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Record the scheduler's events and actions: the last 4,096 at least, and those to come.

    A recording has no text of prompts or answers. `spsctl scheduler replay` checks it.
    """
    cluster = reachable(name, config)
    with suppress(KeyboardInterrupt):
        asyncio.run(_record(cluster, file, seconds))
    lines = file.read_bytes().count(b"\n")
    print(f"{file}: {render.counted(max(0, lines - 1), 'event')}")


def replay(file: FileArgument) -> None:
    """Replay a recording: the same code must decide the same again. Exit code 1 if it does not.

    A KV directory follows the recorded leases, and must have the free pages that the live one
    reported. A recording of a version with other events is refused.
    """
    recording = Recording.read(file)
    events, actions = Counter[str](), Counter[str]()
    core = recording.core()
    directory = DirectoryReplay(core.state())
    last: Entry | None = None
    for entry in recording.replay(core):
        if last is not None:
            directory.follow(last)
        last = entry
        events[type(entry.event).__name__] += 1
        actions.update(type(action).__name__ for action in entry.actions)
    if last is not None:
        directory.follow(last)
    compared = directory.finish()
    if compared.differing:
        raise Invalid(f"{file}: {compared.differing[0]} ({len(compared.differing)} such reports)")
    table = render.table("EVENT", ">COUNT")
    for kind, count in events.most_common():
        table.add_row(kind, f"{count:,}")
    render.show(table)
    print()
    table = render.table("ACTION", ">COUNT")
    for kind, count in actions.most_common():
        table.add_row(kind, f"{count:,}")
    render.show(table)
    print(
        f"\nAll actions followed again, under the policy {recording.header.settings.policy}, and "
        f"free pages were the same in {render.counted(compared.rooms, 'report')} of the directory."
    )


async def recorded(cluster: Cluster, follow: bool) -> AsyncIterator[bytes]:
    """The lines of a recording of a cluster's scheduler."""
    peer = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        async with peer.stream(Record(follow)) as items:
            async for item in items:
                for line in item.lines:
                    yield line
    finally:
        await peer.close()


async def _record(cluster: Cluster, file: Path, seconds: float | None) -> None:
    with file.open("wb") as out, suppress(TimeoutError):
        async with asyncio.timeout(seconds or None):
            async for line in recorded(cluster, seconds != 0):
                out.write(line + b"\n")
