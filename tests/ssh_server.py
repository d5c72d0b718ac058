"""A real SSH server of one host: runs what a client with the right key asks for.

    python tests/ssh_server.py ADDRESS FOLDER

The folder has `host_key` and `authorized_keys`. Prints a line once it listens on port 22.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import asyncssh


async def serve_command(asked: "asyncssh.SSHServerProcess[Any]") -> None:
    assert asked.command is not None
    process = await asyncio.create_subprocess_shell(
        asked.command, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    await asked.redirect(process.stdin, process.stdout, process.stderr)
    status = await process.wait()
    await asked.stdout.drain()
    asked.exit(status)


async def main(address: str, folder: Path) -> None:
    await asyncssh.listen(
        address,
        22,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "authorized_keys"),
        process_factory=serve_command,
        encoding=None,
    )
    print("listening", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
