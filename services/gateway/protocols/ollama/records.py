"""Turns the chunks of an answer into records of Ollama's API, one a line."""

import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from sps2.common.api import (
    ChatChunk,
    ChatLogprob,
    CompletionChunk,
    CompletionLogprobs,
    Embeddings,
    TopLogprob,
)
from sps2.common.api.tools import ToolCallDelta
from sps2.common.api.usage import Usage
from sps2.common.errors import Internal, Invalid
from sps2.common.messages import Struct
from sps2.services.gateway.http.framing import Framing
from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.protocols.renaming import in_words_of

NS = 1_000_000_000
NAMES = {
    "max_tokens": "options.num_predict",
    "stop": "options.stop",
    "response_format": "format",
    "response_format.json_schema": "format",
}
"""The names of fields here, by those of a chat."""

Reason = Literal["stop", "length", "load", "unload"]
Chunks = AsyncGenerator[ChatChunk, None] | AsyncGenerator[CompletionChunk, None]


class Failure(Struct, frozen=True):
    """An error of Ollama's API."""

    error: str


def failure(report: ErrorReport, request: str) -> Failure:
    """The body of an error answer."""
    return Failure(report.message)


class Lines(Framing):
    """JSON objects, one a line."""

    media_type = "application/x-ndjson"
    still_here = b""
    done = b""

    def written(self, value: object) -> bytes:
        return msgspec.json.encode(value) + b"\n"

    def failed(self, report: ErrorReport) -> bytes:
        return self.written(failure(report, ""))


class Called(Struct, frozen=True):
    name: str
    arguments: dict[str, Any]


class Call(Struct, frozen=True):
    id: str
    function: Called


class Said(Struct, frozen=True, kw_only=True):
    """A part of the assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class Record(Struct, frozen=True, kw_only=True):
    """A part of an answer; the last has the reason of its end, and what it took, in ns."""

    model: str
    created_at: str
    message: Said | UnsetType = UNSET
    """Of a chat."""
    response: str | UnsetType = UNSET
    """Of a generation; so is `thinking`."""
    thinking: str | UnsetType = UNSET
    logprobs: list[ChatLogprob] | UnsetType = UNSET
    done: bool = False
    done_reason: Reason | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class Embedded(Struct, frozen=True):
    """`POST /api/embed`; durations are in ns."""

    model: str
    embeddings: list[list[float] | str]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Recorder:
    """Makes the records of one answer.

    Args:
        model: the model's name, as the client gave it.
        chat: whether the records are those of a chat, or of a generation.
    """

    def __init__(self, model: str, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._names = NAMES if chat else NAMES | {"messages": "prompt"}
        self._since_s = time.monotonic()

    def nothing(self, reason: Reason) -> Record:
        """The only record of a request without a prompt."""
        return replace(self._record("", ""), done=True, done_reason=reason)

    async def records(self, chunks: Chunks) -> AsyncGenerator[Record, None]:
        """The records of an answer, as its chunks come. Raises what these raise."""
        try:
            async with aclosing(self._records(chunks)) as records:
                async for record in records:
                    yield record
        except Invalid as error:
            raise in_words_of(error, self._names) from error

    async def _records(self, chunks: Chunks) -> AsyncGenerator[Record, None]:
        usage: Usage | None = None
        reason: Reason = "stop"
        calls = _Calls()
        async with aclosing(chunks):
            async for chunk in chunks:
                usage = chunk.usage or usage
                for each in chunk.choices:
                    if each.finish_reason == "length":
                        reason = "length"
                    text, thinking, logprobs = "", "", list[ChatLogprob]()
                    if isinstance(chunk, ChatChunk):
                        delta = each.delta  # type: ignore[union-attr]
                        text, thinking = delta.content or "", delta.reasoning_content or ""
                        calls.add(delta.tool_calls or [])
                        if each.logprobs is not None:
                            logprobs = each.logprobs.content  # type: ignore[union-attr]
                    else:
                        text = each.text  # type: ignore[union-attr]
                        if each.logprobs is not None:
                            logprobs = [*_listed(each.logprobs)]  # type: ignore[arg-type]
                    made = calls.complete(whole=each.finish_reason is not None)
                    if text or thinking or logprobs or made:
                        yield self._record(text, thinking, made, logprobs)
        if usage is None:
            raise Internal("the answer ended without its usage")
        yield self._last(usage, reason)

    async def whole(self, chunks: Chunks) -> Record:
        """All records of an answer as one."""
        texts, thoughts, calls, logprobs = [], [], list[Call](), list[ChatLogprob]()
        last: Record | None = None
        async with aclosing(self.records(chunks)) as records:
            async for last in records:
                logprobs += last.logprobs or []
                if isinstance(last.message, Said):
                    texts.append(last.message.content)
                    thoughts.append(last.message.thinking or "")
                    calls += last.message.tool_calls or []
                else:
                    texts.append(last.response or "")
                    thoughts.append(last.thinking or "")
        if last is None:
            raise Internal("the answer ended without its usage")
        made = self._record("".join(texts), "".join(thoughts), calls, logprobs)
        spoken = {name: getattr(made, name) for name in ("message", "response", "thinking")}
        return replace(last, **spoken, logprobs=made.logprobs)

    def embedded(self, made: Embeddings) -> Embedded:
        """The answer to a request for embeddings."""
        vectors = [each.embedding for each in made.data]
        total = round((time.monotonic() - self._since_s) * NS)
        return Embedded(self._model, vectors, total, 0, made.usage.prompt_tokens)

    def _record(
        self,
        text: str,
        thinking: str,
        calls: list[Call] | None = None,
        logprobs: list[ChatLogprob] | None = None,
    ) -> Record:
        record = Record(model=self._model, created_at=_now(), logprobs=logprobs or UNSET)
        if not self._chat:
            return replace(record, response=text, thinking=thinking or UNSET)
        said = Said(content=text, thinking=thinking or UNSET, tool_calls=calls or UNSET)
        return replace(record, message=said)

    def _last(self, usage: Usage, reason: Reason) -> Record:
        total = round((time.monotonic() - self._since_s) * NS)
        before = min(total, round(usage.sps2.ttft_ms * NS / 1000)) if usage.sps2 else 0
        return replace(
            self._record("", ""),
            done=True,
            done_reason=reason,
            total_duration=total,
            load_duration=0,
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=before,
            eval_count=usage.completion_tokens,
            eval_duration=total - before,
        )


class _Calls:
    """The calls of an answer, which come in parts and leave whole."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}

    def add(self, deltas: list[ToolCallDelta]) -> None:
        for each in deltas:
            self._ids[each.index] = each.id or self._ids.get(each.index, "")
            name = each.function.name or self._names.get(each.index, "")
            self._names[each.index] = name
            self._arguments.setdefault(each.index, []).append(each.function.arguments or "")

    def complete(self, whole: bool) -> list[Call]:
        """The calls that are complete: all if the answer is `whole`, else all but the last.

        The last is left out if its arguments were cut: nothing good can come of it.
        """
        ended = sorted(self._ids)[: None if whole else -1]
        calls = []
        for index in ended:
            name, identifier = self._names.pop(index), self._ids.pop(index)
            try:
                arguments = json.loads("".join(self._arguments.pop(index)) or "{}")
            except ValueError:
                continue
            if isinstance(arguments, dict):
                calls.append(Call(identifier, Called(name, arguments)))
        return calls


def _listed(logprobs: CompletionLogprobs) -> Iterator[ChatLogprob]:
    """The log-probabilities of a completion, token by token."""
    given = zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    for token, logprob, others in given:
        top = [TopLogprob(each, value, [*each.encode()]) for each, value in (others or {}).items()]
        yield ChatLogprob(token, logprob or 0.0, [*token.encode()], top)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
