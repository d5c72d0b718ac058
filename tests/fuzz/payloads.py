"""What frames carry, decoded in this process: messages of the bus, and coded tensors."""

import random
from typing import Literal, Self, get_args

import msgspec
import torch
from msgspec import Struct

from sps2.common import messages
from sps2.common.bus import wire
from sps2.common.bus.telemetry import Event
from sps2.common.messages import Request, Stream
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.transport import frame as frames
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like
from sps2.services import coded_kv
from sps2.services.decode.frame_rows import Unanswered, pack, unpack_keys, unpack_unanswered
from sps2.services.gateway.http.problems import ErrorReport

from . import mutate
from .target import Pieces, Target

METHODS: tuple[type[Struct], ...] = tuple(
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type)
    and issubclass(kind, Request | Stream)
    and kind not in (Request, Stream)
)


def sample(dice: random.Random, kind: type[Struct]) -> dict[str, object]:
    """Values for the fields of a message; most have the right type."""
    return {each.name: _value(dice, each.type, 0) for each in msgspec.structs.fields(kind)}


def _value(dice: random.Random, kind: object, depth: int) -> object:
    origin, arguments = getattr(kind, "__origin__", None), get_args(kind)
    if dice.random() < 0.08 or depth > 6:
        return mutate.strange(dice, binary=True)
    if hasattr(kind, "__metadata__"):  # an annotated type
        return _value(dice, origin, depth)
    if isinstance(kind, type) and issubclass(kind, Struct):
        config = kind.__struct_config__
        values = {
            each.name: _value(dice, each.type, depth + 1) for each in msgspec.structs.fields(kind)
        }
        tag = {"type": config.tag} if config.tag else {}
        return list(values.values()) if config.array_like else tag | values
    if origin in (list, tuple, set, frozenset):
        return [_value(dice, arguments[0], depth + 1) for _ in range(dice.choice((0, 1, 2, 3)))]
    if origin is dict:
        return {"a": _value(dice, arguments[-1], depth + 1)}
    if origin is Literal:
        return dice.choice(arguments)
    if arguments:
        return _value(dice, dice.choice(arguments), depth + 1)
    plain = {int: 3, float: 0.5, str: "shard-0", bytes: b"12345678", bool: True, type(None): None}
    return plain.get(kind) if isinstance(kind, type) else None


class Messages(Target):
    """Headers, bodies and errors of the bus."""

    name = "messages"

    def case(self, dice: random.Random) -> Pieces:
        kind = dice.choice(("header", "header", "body", "body", "body", "body", "error", "event"))
        if kind == "header":
            plain = [1, dice.randrange(12), dice.randrange(5), "Echo", 100, 3]
            data = mutate.packed(mutate.changed_value(dice, plain, binary=True))
        elif kind == "error":
            names = (
                "Invalid",
                "Refused",
                "PeerLost",
                "Preempted",
                "Cancelled",
                "ServiceError",
                "x",
            )
            given = [
                dice.choice(names),
                ["why", dice.choice((None, 1.0, "x", float("nan"), 1e400))],
            ]
            data = mutate.packed(mutate.changed_value(dice, given, binary=True))
        elif kind == "event":
            heartbeat: object = {"type": "Heartbeat", "service": "mixed-0", "pid": 1, "at_s": 1.0}
            data = mutate.packed(
                mutate.changed_value(
                    dice, {**heartbeat, "rss_bytes": 1, "counters": {"a": 1.0}}, binary=True
                )
            )  # type: ignore[dict-item]
        else:
            method = dice.choice(METHODS)
            kind = method.__name__
            value = sample(dice, method)
            if dice.random() < 0.3:
                value = mutate.changed_value(dice, value, binary=True)
            data = mutate.packed(value)
        return [kind.encode(), mutate.changed(dice, data) if dice.random() < 0.4 else data]

    async def feed(self, pieces: Pieces) -> None:
        kind, data = pieces[0].decode(), pieces[1]
        if kind == "header":
            wire.unpack_header(data)
        elif kind == "error":
            error = wire.unpack_error(data)
            str(error), repr(error), wire.pack_error(error)
            ErrorReport(error)
        elif kind == "event":
            wire.unpack(data, Event)  # type: ignore[arg-type]
        else:
            wire.pack(wire.unpack(data, getattr(messages, kind)))


class Tensors(Target):
    """Headers of the data plane's frames, and packed and coded tensors, many of them by C++."""

    name = "tensors"
    CONFIG = ModelConfig(
        "llama", 300, 64, 96, 2, 4, 2, 16, 4096, 1e-6, Rope(), (None, None), dtype="bfloat16"
    )

    async def __aenter__(self) -> Self:
        dice = torch.Generator().manual_seed(1)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=dice)

        numbers = drawn(40, 2, 64).bfloat16()
        (self._packed,) = lossless.pack((numbers,))
        self._like = Like(torch.bfloat16, (None, 2, 64))
        coded = coded_kv.pack(drawn(150, 2, 16), drawn(150, 2, 16), drawn(8, 4, 16), 0, self.CONFIG)
        self._coded = coded
        self._frame = frames.frame_for("kv", ("r",), (0,), 1, 2, (numbers, torch.zeros(3)))
        return self

    def case(self, dice: random.Random) -> Pieces:
        kind = dice.choice(("frame", "packed", "coded", "coded", "keys", "unanswered"))
        if kind == "packed":
            return [kind.encode(), mutate.changed(dice, _bytes(self._packed))]
        if kind == "coded":
            parts = [_bytes(each) for each in self._coded]
            for _ in range(dice.choice((1, 1, 2, 3))):
                place = dice.choice((0, 1, 2, 3, 4, 4, 5, 5, 5))
                parts[place] = mutate.changed(dice, parts[place])
                if dice.random() < 0.8:  # of its own size, so that it is looked into
                    size = self._coded[place].nbytes
                    parts[place] = (parts[place] + bytes(size))[:size]
            return [kind.encode(), *parts]
        if kind == "frame":
            given = msgspec.to_builtins(self._frame)
            data = mutate.packed(mutate.changed_value(dice, given))
        else:
            content = Unanswered([("r", 0)], "why") if kind == "unanswered" else [("r", 0)]
            data = _bytes(pack(content))
        return [kind.encode(), mutate.changed(dice, data) if dice.random() < 0.5 else data]

    async def feed(self, pieces: Pieces) -> None:
        kind, *parts = pieces
        if kind == b"frame":
            frame = frames.decode(parts[0])
            if frame.nbytes < 1 << 30:
                frames.allocate(frame)
        elif kind == b"packed":
            lossless.unpack((_tensor(parts[0], self._packed),), (self._like,))
        elif kind == b"coded":
            tensors = [_tensor(*each) for each in zip(parts, self._coded, strict=True)]
            coded_kv.unpack(tensors, 0, self.CONFIG, torch.bfloat16)
        elif kind == b"keys":
            unpack_keys(_tensor(parts[0], self._packed))
        else:
            unpack_unanswered(_tensor(parts[0], self._packed))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, like: torch.Tensor) -> torch.Tensor:
    """The bytes as a tensor of a dtype, and of a shape if they are as many."""
    whole = data[: len(data) - len(data) % like.element_size()]
    if not whole:
        return torch.empty(0, dtype=like.dtype)
    tensor = torch.frombuffer(bytearray(whole), dtype=like.dtype)
    return tensor.view(like.shape) if tensor.numel() == like.numel() else tensor
