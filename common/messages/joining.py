"""Messages of a machine that joins a cluster with a code, and that leaves it."""

from typing import Annotated

from msgspec import Meta

from sps2.common.messages.base import Done, Request, Struct

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]
"""The name of a file of a model, in its folder."""
Count = Annotated[int, Meta(ge=0, le=1024)]


class ModelFile(Struct, frozen=True):
    """A file of the served model. `digest` is its SHA-256, in hexadecimal."""

    name: FileName
    size: Annotated[int, Meta(ge=0)]
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Admission(Struct, frozen=True):
    """All that a machine needs to be a part of the cluster."""

    config: str
    """The cluster's configuration, as TOML."""
    key: bytes
    """The content of the cluster's key file."""
    shards: tuple[str, ...]
    """The ids of the shards that the machine is to run."""
    model: FileName
    """The name of the model's folder."""
    files: tuple[ModelFile, ...]
    now_s: float
    """The clock of the answering machine, in seconds since the epoch."""


class JoinCluster(Request[Admission], frozen=True):
    """An invited machine to the joining service: be a part of the cluster. Without counts it runs
    one shard, of the role that the cluster has less of. Invalid if the code is over."""

    secret: bytes
    """The code's."""
    machine: Annotated[str, Meta(min_length=8, max_length=64)]
    """An id of the machine: it gets the same shards as before, if it comes again."""
    host: Annotated[str, Meta(max_length=255)]
    """The machine's name, for messages."""
    prefill: Count = 0
    decode: Count = 0
    mixed: Count = 0


class LeaveCluster(Request[Done], frozen=True):
    """A machine to the joining service: its shards have ended; others may have their ids."""

    machine: str


class Piece(Struct, frozen=True):
    """Bytes of a file."""

    data: bytes


class ReadModel(Request[Piece], frozen=True):
    """A machine to the joining service: read a part of a file of the model."""

    file: FileName
    offset: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=1, le=8 << 20)]
