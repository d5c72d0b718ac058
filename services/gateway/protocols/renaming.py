"""Names of fields in errors: of a chat inside, of the client's protocol outside."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from sps2.common.api import ChatChunk
from sps2.common.errors import Invalid


async def renamed(
    chunks: AsyncGenerator[ChatChunk, None], names: Mapping[str, str]
) -> AsyncGenerator[ChatChunk, None]:
    """The same chunks; an Invalid names the client's field in place of that of the chat.

    Args:
        names: the client's names of fields, by those of a chat.
    """
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except Invalid as error:
            raise in_words_of(error, names) from error


def in_words_of(error: Invalid, names: Mapping[str, str]) -> Invalid:
    """The error with the client's names of fields."""
    message = re.sub("`([^`]*)`", lambda found: f"`{_renamed(found[1], names)}`", error.message)
    field = None if error.field is None else _renamed(error.field, names)
    return Invalid(message, field, error.code)


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """A path with the client's name for the longest part of its beginning that has one."""
    for name in sorted(names, key=len, reverse=True):
        if path == name or path.startswith((f"{name}.", f"{name}[")):
            return names[name] + path[len(name) :]
    return path
