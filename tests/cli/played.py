"""A cluster that is played: it answers in no time, and says where each answer is decoded."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from sps2.common.api import CompletionChoice, CompletionChunk
from sps2.common.api.usage import Sps2Usage, Usage
from sps2.common.messages import ClusterStatus, Placement, RequestStatus
from sps2.common.spans import Span

from .top.acts import running, status


class Played:
    """Answers as a cluster of two prefill and two decode shards, in no time."""

    def __init__(self, foreign: int = 0) -> None:
        self.foreign = foreign
        self.prompts: list[list[int]] = []
        self.live: dict[str, RequestStatus] = {}

    async def status(self) -> ClusterStatus:
        others = [running(request=f"{n:016x}") for n in range(self.foreign)]
        return msgspec.structs.replace(shown(), requests=(*self.live.values(), *others))

    async def complete_stream(
        self, prompt: Sequence[int], **parameters: Any
    ) -> AsyncGenerator[CompletionChunk, None]:
        self.prompts.append([*prompt])
        name = f"{len(self.prompts):012x}"
        tokens, half = len(prompt), len(prompt) // 2
        places = [Placement("decode-1", Span(0, tokens), 1)]
        if tokens > 2048:
            places = [Placement("decode-0", Span(0, half), 1), *places]
        owner = "decode-0" if len(self.live) % 2 else "decode-1"
        self.live[name] = RequestStatus(
            f"{name}0000", "decode", tokens, 0.0, 0, 1, owner, (*places,)
        )
        try:
            for number in range(1, parameters["max_tokens"] + 1):
                await asyncio.sleep(0.001)
                yield chunk(name, number, tokens, parameters["sps2"].get("sp_degree", 1))
        finally:
            del self.live[name]


def chunk(name: str, number: int, tokens: int, degree: int) -> CompletionChunk:
    blank = dict.fromkeys(Sps2Usage.__struct_fields__, 0)
    given = blank | {"prefill_s": 0.0005, "attention_s": 1e-5, "chunks": 1, "sp_degree": degree}
    return CompletionChunk(
        id=f"cmpl-{name}",
        created=1,
        model="m",
        system_fingerprint="f",
        choices=[CompletionChoice(0, "x")],
        usage=Usage(tokens, number, tokens + number, sps2=Sps2Usage(**given)),  # type: ignore[arg-type]
    )


def shown() -> ClusterStatus:
    """A cluster whose decode shards have 4,096 tokens of KV each."""
    found = status()
    shards = tuple(
        msgspec.structs.replace(each, pages=128 if each.role == "decode" else 0)
        for each in found.shards
    )
    return msgspec.structs.replace(found, shards=shards)
