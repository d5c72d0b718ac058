"""Key files, which identify a process on the bus. `spsctl keys` makes them."""

import hashlib
import os
import secrets
import stat
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import zmq
from msgspec import Meta

from sps2.common.config import Bus
from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED

CLUSTER = "cluster.key"
CLIENTS = "clients.json"
API_KEYS = "api.json"
INVITES = "invites.json"

Text = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{40}$")]
"""A CURVE key in Z85."""
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9._@-]{1,64}$")]
Time = Annotated[datetime, Meta(tz=True)]
"""A time with its zone: others cannot be compared with now."""
NAME = "a name has 1 to 64 letters, digits and . _ @ -"
"""The error message about a malformed name."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CURVE key pair, and the public key of the cluster that it is for.

    All services of a cluster have the same pair; each client has its own.
    """

    kind: Literal["cluster", "client"]
    name: Name
    public: Text
    secret: Text
    cluster: Text

    def __repr__(self) -> str:
        return f"Key({self.kind} {self.name})"


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's entry in the cluster's list."""

    public: Text
    created: str


Clients = dict[Name, Client]


ApiState = Literal["valid", "expired", "revoked"]


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key of the gateway. The key itself is not stored."""

    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key. The key is random and long, so no slower hash is needed."""
    created: Time
    expires: Time | None = None
    revoked: Time | None = None
    requests_per_minute: Annotated[int, Meta(ge=0)] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0)] = 0
    """Prompts and answers together; 0 is no limit."""

    def state(self, now: datetime) -> ApiState:
        if self.revoked is not None:
            return "revoked"
        expired = self.expires is not None and self.expires.timestamp() <= now.timestamp()
        return "expired" if expired else "valid"


ApiKeys = dict[Name, ApiKey]


def api_digest(key: str) -> str:
    """The digest that is stored of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


def of(bus: Bus) -> Key | None:
    """The key that `bus.keys` names: a folder's cluster key, or a file; None if it is empty.

    Raises:
        Invalid: the key is missing, malformed, or readable by others.
    """
    if not bus.keys:
        return None
    path = Path(bus.keys).expanduser()
    if path.is_dir():
        require_private_folder(path)
        path /= CLUSTER
    return read(path)


def cluster_key(bus: Bus) -> Key | None:
    """As `of`, for a service. Raises Invalid if the key is a client's."""
    key = of(bus)
    if key is not None and key.kind != "cluster":
        raise Invalid(f"{bus.keys} is the key of client {key.name}: a service needs {CLUSTER}")
    return key


def beside(bus: Bus, name: str) -> Path:
    """The path of a file in the folder of the cluster's key."""
    path = Path(bus.keys).expanduser()
    return (path if path.is_dir() else path.parent) / name


def read(path: Path) -> Key:
    """Read a key file. Raises Invalid as `of` does."""
    try:
        key = msgspec.json.decode(read_private(path), type=Key)
    except FileNotFoundError:
        raise Invalid(
            f"there is no key at {path}: `spsctl keys init` makes a cluster's, "
            "`spsctl keys client add NAME` a client's"
        ) from None
    except MALFORMED as error:
        raise Invalid(f"{path} is no key file of SPS2: {error}") from error
    if zmq.curve_public(key.secret.encode()).decode() != key.public:
        raise Invalid(f"{path} is damaged: its secret and its public key do not belong together")
    return key


def read_private(path: Path) -> bytes:
    """The bytes of a file that nobody else may read or write.

    A group may read files that root owns: orchestrators pass secrets to processes that way.

    Raises:
        FileNotFoundError: there is no such file.
        Invalid: others may read or change the file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            mode, owner = stat.S_IMODE(found.st_mode), found.st_uid
            if owner not in (0, os.geteuid()):
                raise Invalid(f"{path} belongs to another user: chown it to the one who runs SPS2")
            if mode & (0o037 if owner != os.geteuid() else 0o077):
                raise Invalid(f"others can read {path} (mode {mode:o}): `chmod 600 {path}`")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically by one that only its owner can read."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def require_private_folder(path: Path) -> None:
    """Raise Invalid if others may open a folder of this user."""
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == os.geteuid() and mode & 0o077:
        raise Invalid(f"others can open the folder {path} (mode {mode:o}): `chmod 700 {path}`")
