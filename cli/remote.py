"""Checks, before anything is started, that the hosts of a list can run their services."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from sps2.cli.commands import order, reach
from sps2.cli.hosts import Host, Hosts
from sps2.cli.node import Report
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED
from sps2.services.compatibility import apart

CHECK_S = 300.0
"""Timeout of a host's check: at the first check of a model the host reads it completely."""
WAY_BACK_S = 1.0
"""Maximum delay between a host's reading of its clock and the arrival of its answer through ssh."""


def check(cluster: Cluster, hosts: Hosts) -> list[str]:
    """Check all hosts.

    Returns:
        Warnings that do not keep the cluster from running.

    Raises:
        Invalid: a host cannot be reached or cannot run its services; the message has all reasons.
    """
    answers = asyncio.run(_ask_all(cluster, hosts))
    problems = [
        f"host {host.name!r}: {problem}"
        for host, (report, _) in zip(hosts.hosts, answers, strict=True)
        for problem in ([report] if isinstance(report, str) else report.problems)
    ]
    if not problems:
        problems = _models_apart(hosts.hosts, [r for r, _ in answers if isinstance(r, Report)])
    if problems:
        raise Invalid("\n".join(problems))
    odd = (
        apart(f"host {host.name!r}", ahead_s, WAY_BACK_S)
        for host, (_, ahead_s) in zip(hosts.hosts, answers, strict=True)
    )
    return [each for each in odd if each]


Answer = tuple[Report | str, float]
"""A host's report, or why there is none, and how far its clock is ahead of this one, in seconds."""


async def _ask_all(cluster: Cluster, hosts: Hosts) -> list[Answer]:
    return await asyncio.gather(*(_ask(cluster, hosts, host) for host in hosts.hosts))


async def _ask(cluster: Cluster, hosts: Hosts, host: Host) -> Answer:
    services = [name for name, place in hosts.places(cluster).items() if place == host]
    keyless = replace(order(cluster, hosts, host, services), keys={})
    line = msgspec.json.encode(keyless) + b"\n"
    argv = reach(hosts, host, "--check")
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return f"{argv[0]} cannot be started: {error.strerror}", 0.0
    try:
        async with asyncio.timeout(CHECK_S):
            said, complained = await process.communicate(line)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"no answer in {CHECK_S:.0f} s", 0.0
    try:
        report = msgspec.json.decode(said.splitlines()[-1], type=Report)  # a login may greet
    except (IndexError, *MALFORMED):
        return _why(complained.decode(errors="replace"), process.returncode, hosts, host), 0.0
    return report, report.now_s - time.time()


def _why(complained: str, status: int | None, hosts: Hosts, host: Host) -> str:
    python = host.python or hosts.python
    last = complained.strip().splitlines()[-1:] or [f"exit status {status}"]
    if status == 255:  # ssh's own
        return f"cannot be reached: {last[0]}; try `{hosts.ssh} {host.name} true`"
    if "No module named" in complained:
        return f"{python} has no sps2 there, or an old one ({last[0]}): set `python` of this host"
    return f"{python} -m sps2.cli.node failed there: {last[0]}"


def _models_apart(hosts: Sequence[Host], reports: Sequence[Report]) -> list[str]:
    usual = Counter(report.model for report in reports).most_common(1)[0][0]
    return [
        f"host {host.name!r}: its model is not the one that the other hosts have; pull it again"
        for host, report in zip(hosts, reports, strict=True)
        if report.model != usual
    ]
