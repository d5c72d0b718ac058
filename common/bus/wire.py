"""The format of messages on the control bus: two MessagePack frames, header and body."""

import sys
from enum import IntEnum
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgpack
import msgspec
from msgspec import Meta

from sps2.common import errors
from sps2.common.errors import Internal, Invalid, ServiceError
from sps2.common.messages import Request, Stream

VERSION = 1
WINDOW = 64
"""Items of a stream that may be under way before the consumer reads one."""
MAX_WINDOW = 1024
MAX_HEADER_BYTES = 512
MAX_DEADLINE_MS = 1 << 40
MAX_ERROR_CHARS = 4096
MAX_ID = (1 << 63) - 1

T = TypeVar("T")
Id = Annotated[int, Meta(ge=0, le=MAX_ID)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]


class Kind(IntEnum):
    """The kind of a message. Clients send CALL, CANCEL, CREDIT and PING; servers the others."""

    CALL = 1
    REPLY = 2
    ITEM = 3
    END = 4
    ERROR = 5
    CANCEL = 6
    PING = 7
    """Sent by either side as a sign of life; a server answers a client's with PONG."""
    PONG = 8
    CREDIT = 9
    GOODBYE = 10
    """The server is about to close: this connection's calls are lost, and no more are taken."""


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first frame. `version` and `call` keep their places in all future versions."""

    version: int
    kind: Kind
    call: Id = 0
    """Chosen by the client, unique on its connection; 0 belongs to no call."""
    method: Annotated[str, Meta(max_length=128)] = ""
    deadline_ms: Annotated[int, Meta(ge=0, le=MAX_DEADLINE_MS)] = 0
    """Time left when the call was sent; 0: no deadline."""
    credit: Annotated[int, Meta(ge=0, le=MAX_WINDOW)] = 0
    """Items that the server may send: the first with CALL, more with CREDIT."""


def pack_header(
    kind: Kind, call: int = 0, method: str = "", deadline_ms: int = 0, credit: int = 0
) -> bytes:
    """Encode a header of this version."""
    packed: bytes = msgpack.packb((VERSION, int(kind), call, method, deadline_ms, credit))
    return packed


def unpack_header(data: bytes) -> Header:
    """Decode a peer's header. Of another version only `version` and `call` are decoded.

    Raises:
        Invalid: not a header.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise Invalid(f"a header of {len(data)} bytes is over {MAX_HEADER_BYTES}")
    match raw := _unpack(data):
        case [int(version), _, int(call), *_] if version != VERSION and 0 <= call <= MAX_ID:
            return Header(version, Kind.ERROR, int(call))  # True is an int, but no id
        case [int(version), *_] if version != VERSION:
            return Header(version, Kind.ERROR)
    return _convert(raw, Header)


def pack(value: object) -> bytes:
    """Encode the body of a message, a reply or an item."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)))
    return packed


def unpack(data: bytes, kind: type[T]) -> T:
    """Decode a peer's body, checked against `kind` (a Struct or a union of them).

    Raises:
        Invalid: not MessagePack, beyond the limits, or not a `kind`.
    """
    return _convert(_unpack(data), kind)


def pack_error(error: ServiceError) -> bytes:
    """Encode the body of an ERROR: the error's type name and arguments."""
    arguments = [
        each if each is None or isinstance(each, int | float) else str(each)[:MAX_ERROR_CHARS]
        for each in error.args
    ]
    packed: bytes = msgpack.packb((type(error).__name__, arguments))
    return packed


def unpack_error(data: bytes) -> ServiceError:
    """Decode a peer's error; Internal if it is none of `sps2.common.errors`."""
    try:
        name, arguments = unpack(data, tuple[str, tuple[str | int | float | None, ...]])
        kind = getattr(errors, name, None)
        if not (isinstance(kind, type) and issubclass(kind, ServiceError)):
            return Internal(f"unknown error {name[:MAX_ERROR_CHARS]}")
        for argument, wanted in zip(arguments, _arguments(kind), strict=False):
            _convert(argument, wanted)
        error: ServiceError = kind(*arguments)
        str(error)  # raises TypeError now, not later in a log, if an argument has a wrong type
    except (Invalid, TypeError):
        return Internal("malformed error")
    return error


def _arguments(kind: type[ServiceError]) -> tuple[Any, ...]:
    """The types of an error's arguments: what comes of another type would fail only when used."""
    given = get_type_hints(kind.__init__)
    given.pop("return", None)
    return tuple(Finite if each is float else each for each in given.values())


@cache
def answer_type(message: type[Request[T]] | type[Stream[T]]) -> type[T]:
    """The answer's type: `Info` for `class Describe(Request[Info])`, which may be in quotes.

    Raises:
        TypeError: `message` is not a direct subclass of `Request[...]` or `Stream[...]`.
    """
    for base in vars(message).get("__orig_bases__", ()):
        if get_origin(base) in (Request, Stream):
            holder = SimpleNamespace(__annotations__={"answer": get_args(base)[0]})
            module = vars(sys.modules[message.__module__])
            kind: type[T] = get_type_hints(holder, globalns=module)["answer"]
            return kind
    raise TypeError(f"{message.__qualname__} must subclass Request[...] or Stream[...] directly")


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data, strict_map_key=False, max_array_len=1 << 20, max_map_len=1 << 17, max_ext_len=0
        )
    except Exception as error:  # msgpack raises many types, TypeError of a key among them
        raise Invalid(f"not MessagePack: {str(error) or type(error).__name__}") from error


def _convert(raw: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind, builtin_types=(bytes,))
    except (ValueError, OverflowError, RecursionError) as error:
        raise Invalid(str(error)) from error
