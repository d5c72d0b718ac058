"""The first word to whoever wants to join: which cluster this is, and of which version.

It is said in the clear. The joining machine compares the key with the fingerprint in its code.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Annotated

import msgspec
from msgspec import Meta

from sps2.common.errors import Invalid
from sps2.common.keys.files import Text

SEND_S = 5.0
MAX_BYTES = 4096
CONNECTIONS = 64
"""At once; more are closed unheard."""

Word = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,100}$")]
"""It is shown to users before anything proves where it is from."""

log = logging.getLogger(__name__)


class Hello(msgspec.Struct, frozen=True):
    """One line of JSON, in which later versions may say more."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]+$")]
    """The cluster's name."""
    sps2: Word
    """The version."""
    schema: Word
    """The hash of its messages."""
    key: Text
    """The cluster's public key."""


async def listen(host: str, port: int, hello: Hello) -> asyncio.Server:
    """Say `hello` to everybody who connects, until the server is closed.

    Raises:
        Invalid: the port cannot be bound.
    """
    line = msgspec.json.encode(hello) + b"\n"
    there = 0

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal there
        if there < CONNECTIONS:
            there += 1
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(SEND_S):
                    writer.write(line)
                    await writer.drain()
                    await reader.read(1)  # until they have it: a close could overtake the line
            there -= 1
        writer.close()

    try:
        return await asyncio.start_server(greet, host, port, limit=MAX_BYTES)
    except OSError as error:
        raise Invalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
