"""A process whose bus, or telemetry, ended by a fault says so and ends: it would answer nobody."""

import subprocess
import sys
import textwrap

import pytest

HANG_S = 60
SERVER = """
    import asyncio
    from sps2.common.config import Bus
    from sps2.common.bus.peer import Server
    from sps2.common.bus.listener import Listener

    async def fails(listener):
        raise RuntimeError("a bug")

    async def main():
        Listener.{method} = fails
        await Server((), Bus()).start("tcp://127.0.0.1:0")
        await asyncio.sleep(60)

    asyncio.run(main())
"""
HUB = """
    import asyncio
    from sps2.common.config import Bus
    from sps2.common.bus.curve import Authenticator
    from sps2.common.bus.telemetry import Hub

    async def fails(authenticator):
        raise RuntimeError("a bug")

    async def main():
        Authenticator.run = fails
        await Hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", Bus()).start()
        await asyncio.sleep(60)

    asyncio.run(main())
"""
PROXY = """
    import asyncio, zmq
    from sps2.common.config import Bus
    from sps2.common.bus.telemetry import Hub

    def fails(*sockets):
        raise zmq.ZMQError(zmq.EFAULT, "a bug")

    async def main():
        zmq.proxy = fails
        await Hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", Bus()).start()
        await asyncio.sleep(60)

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (SERVER.format(method="watch"), "server tcp://"),
        (SERVER.format(method="admit"), "server tcp://"),
        (HUB, "telemetry door failed"),
        (PROXY, "the telemetry hub failed"),
    ],
)
def test_a_process_ends_with_what_it_cannot_go_on_without(program: str, why: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ended.returncode == 1
    assert why in ended.stderr
    assert "this process ends" in ended.stderr
    assert "a bug" in ended.stderr
