"""Frames of the control bus survive a round trip, and junk is refused."""

import random
from typing import Annotated, Any, get_args

import msgpack
import msgspec
import pytest
from msgspec import Meta

from sps2.common import errors, messages
from sps2.common.bus import wire
from sps2.common.bus.wire import Kind
from sps2.common.errors import Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import Request, Stream
from sps2.common.spans import Span

MESSAGES = [
    each
    for each in vars(messages).values()
    if isinstance(each, type) and issubclass(each, Request | Stream) and len(each.__mro__) > 5
]


def test_every_message_names_an_answer() -> None:
    assert messages.Describe in MESSAGES
    assert messages.Submit in MESSAGES
    for message in MESSAGES:
        kinds = get_args(wire.answer_type(message)) or (wire.answer_type(message),)
        assert all(issubclass(kind, messages.Struct) for kind in kinds), message
    assert wire.answer_type(messages.Commit) is messages.Committed
    assert get_args(wire.answer_type(messages.Hold)) == (messages.Held, messages.Filled)


def test_a_message_without_an_answer_is_a_mistake() -> None:
    class Indirect(messages.Describe, frozen=True):
        pass

    with pytest.raises(TypeError, match="directly"):
        wire.answer_type(Indirect)


def test_header_round_trip() -> None:
    header = wire.unpack_header(wire.pack_header(Kind.CALL, 2**63 - 1, "Reserve", 1500, 64))
    assert header == wire.Header(wire.VERSION, Kind.CALL, 2**63 - 1, "Reserve", 1500, 64)


def test_body_round_trip_keeps_bytes_keys_unions_and_tuples() -> None:
    sampling = messages.Sampling(4, 1, logit_bias={7: -1.5}, stop_token_ids=(1, 2))
    submit = messages.Submit("é\0", b"\x00\xff" * 100, sampling)
    assert wire.unpack(wire.pack(submit), messages.Submit) == submit
    places = (messages.Placement("d", Span(0, 9), 1),)
    scheme = messages.Scheme("csa", selection=messages.Selection((0.1,), (0.2,)))
    placed = messages.Placed(1, "decode-0", "tcp://h:1", 2, places, "fast", scheme, {"kv": 7})
    kind: Any = wire.answer_type(messages.Submit)
    back = wire.unpack(wire.pack(placed), kind)
    assert back == placed
    assert isinstance(back.placements[0].span, Span)


@pytest.mark.parametrize(
    ("raw", "version", "call"),
    [((9, "what", 12, {}), 9, 12), ((9,), 9, 0), ((2, 1, -1), 2, 0), ((2, 1, 2**64 - 1), 2, 0)],
)
def test_a_foreign_version_is_told_apart(raw: Any, version: int, call: int) -> None:
    header = wire.unpack_header(msgpack.packb(raw))
    assert (header.version, header.call) == (version, call)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        7,
        [],
        {},
        [wire.VERSION],
        [wire.VERSION, 99, 1],
        [wire.VERSION, 1, -1],
        [wire.VERSION, 1, 2**63],
        [wire.VERSION, 1, "1"],
        [wire.VERSION, 1, 1, b"bytes"],
        [wire.VERSION, 1, 1, "x" * 129],
        [wire.VERSION, 1, 1, "x", -1],
        [wire.VERSION, 1, 1, "x", 2**41],
        [wire.VERSION, 1, 1, "x", 0, wire.MAX_WINDOW + 1],
        [wire.VERSION, 1, 1, "x", 0, 0, "more"],
    ],
)
def test_a_wrong_header_is_invalid(raw: Any) -> None:
    with pytest.raises(Invalid):
        wire.unpack_header(msgpack.packb(raw))


def test_a_long_header_is_invalid() -> None:
    with pytest.raises(Invalid, match="over"):
        wire.unpack_header(msgpack.packb([wire.VERSION, 1, 1, "x" * wire.MAX_HEADER_BYTES]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\x91\x01\x02",
        b"\xa2\xff\xff",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x80\x80",
        b"\xcf" + b"\xff" * 8,
        msgpack.packb({"request": 5, "epoch": 0}),
        msgpack.packb({"request": "r"}),
        msgpack.packb({"request": "r", "epoch": 0, "typo": 1}),
        msgpack.packb({"request": "r", "epoch": 0.5}),
        msgpack.packb({"request": "r", "epoch": True}),
        msgpack.packb(["r", 0]),
    ],
)
def test_a_wrong_body_is_invalid(body: bytes) -> None:
    with pytest.raises(Invalid):
        wire.unpack(body, messages.Commit)


def test_constraints_are_checked() -> None:
    class Small(msgspec.Struct, frozen=True):
        size: Annotated[int, Meta(le=3)]

    with pytest.raises(Invalid):
        wire.unpack(wire.pack(Small(4)), Small)


def test_random_bytes_raise_nothing_but_invalid() -> None:
    random_bytes = random.Random(7).randbytes
    good = wire.pack(messages.Submit("r", b"12", messages.Sampling(1, 1)))
    for size in range(3000):
        junk = random_bytes(size % 60)
        cut = good[: size % len(good)] + junk[:3]
        for data in (junk, cut):
            for read in (wire.unpack_header, lambda each: wire.unpack(each, messages.Submit)):
                try:
                    read(data)
                except Invalid:
                    continue
            assert isinstance(wire.unpack_error(data), ServiceError)


@pytest.mark.parametrize(
    "error",
    [
        Invalid("wrong", "top_p"),
        Refused("full", 2.5),
        PeerLost("decode-1"),
        errors.Cancelled("late"),
        errors.Unsound("no numbers"),
        Internal("fault"),
        errors.Cancelled(),
    ],
)
def test_errors_travel_with_their_arguments(error: ServiceError) -> None:
    back = wire.unpack_error(wire.pack_error(error))
    assert type(back) is type(error)
    assert (back.args, str(back), vars(back)) == (error.args, str(error), vars(error))


def test_odd_errors_are_contained() -> None:
    assert wire.unpack_error(wire.pack_error(errors.Cancelled({"a": 1}))).args == ("{'a': 1}",)
    assert len(wire.pack_error(Invalid("x" * 100_000))) < 2 * wire.MAX_ERROR_CHARS
    for raw in (["SystemExit", []], ["Any", []], ["Invalid", []], ["Invalid", [1]], ["Port", [1]]):
        assert type(wire.unpack_error(msgpack.packb(raw))) is Internal


@pytest.mark.parametrize(
    "given",
    [
        ("Refused", ["why", "soon"]),
        ("Refused", ["why", float("nan")]),
        ("Refused", ["why", float("inf")]),
        ("Refused", ["why", None]),
        ("Preempted", ["why", "many"]),
        ("PeerLost", [3, "why"]),
        ("Invalid", ["why", 3, None]),
    ],
    ids=str,
)
def test_an_error_with_arguments_of_other_types_is_malformed(given: tuple[str, Any]) -> None:
    """They would fail where they are used: in a header of HTTP, for one."""
    error = wire.unpack_error(msgpack.packb(given))
    assert (type(error), str(error)) == (Internal, "malformed error")


def test_the_id_of_another_version_is_a_number() -> None:
    """Else the answer's header is malformed itself."""
    header = wire.unpack_header(msgpack.packb([9, 1, True]))
    assert wire.unpack_header(wire.pack_header(Kind.ERROR, header.call)).call == 1
