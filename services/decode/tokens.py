"""Keeps the tokens of an owned request for the gateway, which may fetch them late."""

import asyncio
from collections.abc import AsyncIterator

from sps2.common.errors import ServiceError
from sps2.common.messages import Token


class TokenLog:
    """Numbered tokens of one request, read by `follow`; lives on the control loop."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._error: ServiceError | None = None
        self._changed = asyncio.Event()

    def add(self, token: Token) -> None:
        self._tokens.append(token)
        self._notify()

    @property
    def count(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    def ids(self) -> list[int]:
        """Ids of the tokens so far."""
        return [token.id for token in self._tokens]

    def fail(self, error: ServiceError) -> None:
        """End the log: `follow` raises `error`. Ignored after the last token."""
        if not self._complete and self._error is None:
            self._error = error
            self._notify()

    async def follow(self, start: int) -> AsyncIterator[Token]:
        """Tokens from number `start` to the last, as they come.

        Raises:
            ServiceError: what `fail` was given.
        """
        read = 0
        while True:
            changed = self._changed
            for token in self._tokens[read:]:
                read += 1
                if token.index >= start:
                    yield token
            if self._complete:
                return
            if self._error is not None:
                raise self._error
            if read == len(self._tokens):
                await changed.wait()

    @property
    def _complete(self) -> bool:
        return bool(self._tokens) and self._tokens[-1].finish is not None

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
