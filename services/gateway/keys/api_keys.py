"""Which HTTP clients may use the gateway, and how much: API keys from a file, with quotas."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sps2.common.keys import ApiKey, ApiKeys, api_digest
from sps2.common.keys.reload import Reloaded
from sps2.services.gateway.http.problems import Unauthorised
from sps2.services.gateway.keys.quota import Account, Spent


class Register:
    """The API keys of a file, reloaded when it changes, and what each has used.

    Args:
        path: the file, written by `spsctl keys api`.
        now: seconds since the epoch, for keys that expire.
        clock: seconds since any fixed time, for quotas.

    Attributes:
        spent: told what keys use up.

    Raises:
        Invalid: the file is malformed, or others may read it.
    """

    def __init__(
        self,
        path: Path,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = Reloaded(path, ApiKeys, {})
        self._now = now
        self._clock = clock
        self._seen: ApiKeys | None = None
        self._by_digest: dict[str, tuple[str, ApiKey]] = {}
        self._accounts: dict[str, Account] = {}
        self._by_name: dict[str, Account] = {}
        self.spent: Spent = lambda name, requests, tokens: None

    def accounts(self) -> list[Account]:
        """What all keys have used."""
        self._refresh()
        return [*self._accounts.values()]

    def named(self, name: str) -> Account | None:
        """The account of a key by its name; None if there is no such key."""
        self._refresh()
        return self._by_name.get(name)

    def account(self, authorization: str) -> Account:
        """The account for an `Authorization` header.

        Raises:
            Unauthorised: the key is missing, unknown, revoked or expired.
        """
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Unauthorised(
                "give an API key: the header `Authorization: Bearer KEY`", "missing_api_key"
            )
        self._refresh()
        # the time of the lookup reveals something about digests, not about keys
        digest = api_digest(given.strip())
        if digest not in self._by_digest:
            raise Unauthorised("this API key is not known here", "invalid_api_key")
        name, key = self._by_digest[digest]
        if key.revoked is not None:
            when = _text(key.revoked)
            raise Unauthorised(f"API key {name} was revoked at {when}", "revoked_api_key")
        if key.expires is not None and self._now() >= key.expires.timestamp():
            raise Unauthorised(
                f"API key {name} expired at {_text(key.expires)}; it is "
                f"{_text(datetime.fromtimestamp(self._now(), UTC))} at the gateway",
                "expired_api_key",
            )
        return self._accounts[digest]

    def is_empty(self) -> bool:
        """Whether no key is left that is not revoked."""
        return all(key.revoked is not None for key in self._file.now().values())

    def _tell(self, name: str, requests: int, tokens: int) -> None:
        self.spent(name, requests, tokens)

    def _refresh(self) -> None:
        keys = self._file.now()
        if keys is self._seen:
            return
        self._seen = keys
        self._by_digest = {key.digest: (name, key) for name, key in keys.items()}
        old = self._accounts
        self._accounts = {}
        for name, key in keys.items():
            account = old.get(key.digest) or Account(name, self._clock, self._tell)
            account.limit(key.requests_per_minute, key.tokens_per_minute)
            self._accounts[key.digest] = account
        self._by_name = {each.name: each for each in self._accounts.values()}


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")
