"""The folder of a cluster's keys: making, handing out and revoking them."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from sps2.common.errors import Invalid
from sps2.common.keys import (
    API_KEYS,
    CLIENTS,
    CLUSTER,
    INVITES,
    ApiKey,
    ApiKeys,
    Client,
    Clients,
    Key,
    api_digest,
    read,
    read_private,
    require_private_folder,
    write_private,
)
from sps2.common.keys.files import NAME
from sps2.common.models.file_lock import alone_in
from sps2.common.validation import MALFORMED

T = TypeVar("T")

API_PREFIX = "sk-sps2-"
API_BYTES = 32


class Keyring:
    """A folder with `cluster.key` for services, clients (`clients.json`) and API keys (`api.json`).

    Clients' keys and API keys are returned once, when they are made, and not stored. Several
    processes may change the folder at once: each waits for the others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.cluster = self.folder / CLUSTER
        self.api = self.folder / API_KEYS
        self.listed = self.folder / CLIENTS

    def make(self, name: str, force: bool = False) -> Key:
        """Make the cluster's key, and the folder.

        Raises:
            Invalid: there is a cluster key already. `force` replaces it; then every client needs
                a new key.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            if self.cluster.exists() and not force:
                raise Invalid(
                    f"{self.cluster} exists already; --force replaces it, and every service and "
                    "client needs the new one then"
                )
            require_private_folder(self.folder)
            key = _pair("cluster", name)
            write_private(self.cluster, _json(key))
            for path in (self.listed, self.folder / INVITES):
                path.unlink(missing_ok=True)
            return key

    def clients(self) -> Clients:
        """The clients that may call the gateway and subscribe to telemetry."""
        return self._load(self.listed, Clients) or {}

    def add_client(self, name: str, out: Path) -> Key:
        """Add a client, and write its key to `out`.

        Raises:
            Invalid: the name is malformed or in use, `out` exists, or there is no cluster key.
        """
        with self._alone():
            cluster = read(self.cluster)
            clients = self.clients()
            if name in clients:
                raise Invalid(f"there is a client {name} already: revoke it, or take another name")
            if out.exists():
                raise Invalid(f"{out} exists already")
            key = _pair("client", name, cluster.public)
            write_private(out, _json(key))
            write_private(self.listed, _json({**clients, name: Client(key.public, now_text())}))
            return key

    def revoke_client(self, name: str) -> None:
        """Revoke a client's key. Raises Invalid if there is no such client."""
        with self._alone():
            clients = self.clients()
            if clients.pop(name, None) is None:
                raise Invalid(f"there is no client {name} in {self.listed}")
            write_private(self.listed, _json(clients))

    def api_keys(self) -> ApiKeys:
        """The API keys of the HTTP API, by name."""
        return self._load(self.api, ApiKeys) or {}

    def add_api_key(
        self,
        name: str,
        expires: datetime | None = None,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
    ) -> str:
        """A new API key.

        Raises:
            Invalid: the name is malformed or in use, or there is no cluster key here.
        """
        secret = API_PREFIX + secrets.token_urlsafe(API_BYTES)
        made = ApiKey(
            api_digest(secret),
            datetime.now(UTC),
            expires,
            None,
            requests_per_minute,
            tokens_per_minute,
        )
        with self._alone():
            read(self.cluster)
            keys = self.api_keys()
            if name in keys and keys[name].revoked is None:
                raise Invalid(
                    f"there is an API key {name} already: revoke it, or take another name"
                )
            try:
                kept = msgspec.convert({**keys, name: made}, ApiKeys)
            except msgspec.ValidationError as error:
                raise Invalid(f"{name!r} cannot be a name: {NAME}") from error
            write_private(self.api, _json(kept))
        return secret

    def revoke_api_key(self, name: str) -> None:
        """Revoke an API key. Raises Invalid if there is no valid key of this name."""
        with self._alone():
            keys = self.api_keys()
            if name not in keys or keys[name].revoked is not None:
                raise Invalid(f"there is no API key {name} in {self.api}")
            revoked = msgspec.structs.replace(keys[name], revoked=datetime.now(UTC))
            write_private(self.api, _json({**keys, name: revoked}))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock: nobody else changes the folder within the block."""
        if not self.folder.is_dir():
            read(self.cluster)  # says what is missing
        with alone_in(self.folder):
            yield

    def _load(self, path: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(read_private(path), type=kind)
        except FileNotFoundError:
            return None
        except MALFORMED as error:
            raise Invalid(f"{path} is malformed: {error}") from error


def now_text() -> str:
    """The current time in the format of key files."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _pair(kind: str, name: str, cluster: str | None = None) -> Key:
    public, secret = (half.decode() for half in zmq.curve_keypair())
    made = {"kind": kind, "name": name, "public": public, "secret": secret}
    try:
        return msgspec.convert(made | {"cluster": cluster or public}, Key)
    except msgspec.ValidationError as error:
        raise Invalid(f"{name!r} cannot be a name: {NAME}") from error


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
