"""`spsctl restart`: restarts a running cluster, process by process, while it serves."""

import asyncio
from typing import Annotated

import typer

from sps2.cli import render, runs
from sps2.cli.rolling import Rolling, restarted_together
from sps2.cli.target import NameOption


def restart(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            help="For example decode-1; without any: all that run here, but the gateway if there "
            "is only one, whose clients would be cut off, and gateways that have batches, files or "
            "stored responses, which would be lost."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds within which each must be back.")
    ] = 300.0,
    name: NameOption = None,
) -> None:
    """Restart processes one after the other, while the cluster serves.

    Each ends by SIGTERM, so that a shard finishes its requests or hands them over, is started
    again by the supervisor, and is ready before the next one's turn. Requests wait while the
    scheduler restarts, or the only shard that prefills or decodes. A gateway finishes its answers
    for gateway.drain_s; those that take longer end with an error. Running batches, files and stored
    responses are lost with their gateway, so one that has any is restarted only if it is named.
    """
    folder = runs.choose(name)
    state = folder.state()
    chosen = restarted_together(list(state.services) if state else [], services or [])
    asyncio.run(_restart(Rolling(folder, timeout), chosen, bool(services)))


async def _restart(rolling: Rolling, chosen: list[str], are_named: bool) -> None:
    async with rolling.watching(are_named):
        for number, service in enumerate(chosen, 1):
            if not are_named and (held := rolling.held(service)):
                stays = f"{service} is not restarted, since it would lose {held}"
                render.note(f"{stays}; `spsctl restart {service}` restarts it", "yellow")
                continue
            if note := rolling.interrupts(service):
                render.note(note, "yellow")
            with render.err.status(f"restarting {service} ({number} of {len(chosen)})"):
                took_s = await rolling.restart(service)
            print(f"{service} is back after {took_s:.1f} s ({number} of {len(chosen)})")
