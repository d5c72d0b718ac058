"""Folds the chunks of a stream into the object that answers a request without `stream`."""

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from msgspec import UNSET, UnsetType

from sps2.common.api import (
    Answer,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatFinish,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    FunctionCall,
    ToolCall,
    ToolCallDelta,
)
from sps2.common.api.usage import Usage
from sps2.common.errors import Internal
from sps2.common.messages import FinishReason

L = TypeVar("L")
F = TypeVar("F", bound=str)


class Listed(Protocol[L]):
    """Collects the log-probabilities of one choice, chunk by chunk."""

    def add(self, logprobs: L) -> None: ...

    def whole(self) -> L: ...


class ListedTokens:
    """Collects the log-probabilities of a completion's choice."""

    def __init__(self) -> None:
        self._whole = CompletionLogprobs([], [], [], [])

    def add(self, logprobs: CompletionLogprobs) -> None:
        self._whole.tokens.extend(logprobs.tokens)
        self._whole.token_logprobs.extend(logprobs.token_logprobs)
        self._whole.top_logprobs.extend(logprobs.top_logprobs)
        self._whole.text_offset.extend(logprobs.text_offset)

    def whole(self) -> CompletionLogprobs:
        return self._whole


class ListedEntries:
    """Collects the log-probabilities of a chat's choice."""

    def __init__(self) -> None:
        self._whole = ChatLogprobs([])

    def add(self, logprobs: ChatLogprobs) -> None:
        self._whole.content.extend(logprobs.content)

    def whole(self) -> ChatLogprobs:
        return self._whole


async def collect_completion(
    chunks: AsyncIterable[CompletionChunk],
    listed: Callable[[], Listed[CompletionLogprobs]] = ListedTokens,
) -> Completion:
    """Fold chunks into a completion: the text and log-probabilities of every choice, whole.

    Args:
        listed: makes the collector of one choice's log-probabilities.

    Raises:
        Internal: the usage is missing.
    """
    first: CompletionChunk | None = None
    choices: dict[int, _Choice[CompletionLogprobs, FinishReason]] = {}
    openings: dict[int, CompletionChoice] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for each in chunk.choices:
            choice = choices.get(each.index) or choices.setdefault(each.index, _Choice(listed))
            choice.add(each.text, each.logprobs, each.finish_reason)
            choice.drew(each.token_ids)
            choice.stop_reason = each.stop_reason or choice.stop_reason
            openings.setdefault(each.index, each)
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Completion(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[
            CompletionChoice(
                index,
                each.text,
                each.logprobs,
                each.finish_reason,
                each.token_ids,
                openings[index].prompt_token_ids,
                openings[index].prompt_logprobs,
                each.stop_reason,
            )
            for index, each in sorted(choices.items())
        ],
        usage=usage,
    )


async def collect_chat(
    chunks: AsyncIterable[ChatChunk],
    listed: Callable[[], Listed[ChatLogprobs]] = ListedEntries,
) -> Chat:
    """Fold chunks into a chat; arguments and errors as in `collect_completion`."""
    first: ChatChunk | None = None
    choices: dict[int, _ChatChoice] = {}
    usage: Usage | None = None
    opening: ChatChunk | None = None
    async for chunk in chunks:
        first = first or chunk
        opening = opening or (chunk if chunk.choices else None)
        usage = chunk.usage or usage
        for each in chunk.choices:
            choice = choices.get(each.index) or choices.setdefault(each.index, _ChatChoice(listed))
            choice.add(each.delta.content or "", each.logprobs, each.finish_reason)
            choice.heed(each.delta)
            choice.drew(each.token_ids)
            choice.stop_reason = each.stop_reason or choice.stop_reason
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Chat(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[
            ChatChoice(
                index,
                each.answer(),
                each.logprobs,
                each.finish_reason,
                each.stop_reason,
                each.token_ids,
            )
            for index, each in sorted(choices.items())
        ],
        usage=usage,
        prompt_token_ids=UNSET if opening is None else opening.prompt_token_ids,
        prompt_logprobs=UNSET if opening is None else opening.prompt_logprobs,
    )


@dataclass
class _Choice(Generic[L, F]):
    """What has arrived of one choice."""

    _listed: Callable[[], Listed[L]]
    finish_reason: F | None = None
    token_ids: list[int] | UnsetType = UNSET
    stop_reason: str | UnsetType = UNSET
    _texts: list[str] = field(default_factory=list)
    _list: Listed[L] | None = None

    def drew(self, ids: list[int] | UnsetType) -> None:
        """Add the ids of a part's tokens, if they are wanted."""
        if ids is not UNSET:
            self.token_ids = (self.token_ids or []) + ids

    def add(self, text: str, logprobs: L | None, finish_reason: F | None) -> None:
        self._texts.append(text)
        self.finish_reason = finish_reason
        if logprobs is not None:
            self._list = self._list or self._listed()
            self._list.add(logprobs)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def logprobs(self) -> L | None:
        return None if self._list is None else self._list.whole()


@dataclass
class _ChatChoice(_Choice[ChatLogprobs, ChatFinish]):
    """What has arrived of one answer: besides its text, thoughts and calls."""

    _thoughts: list[str] = field(default_factory=list)
    _calls: dict[int, "_Call"] = field(default_factory=dict)

    def heed(self, delta: Delta) -> None:
        """Add a part's thoughts and calls."""
        if isinstance(delta.reasoning_content, str):
            self._thoughts.append(delta.reasoning_content)
        for each in delta.tool_calls or ():
            self._calls.setdefault(each.index, _Call()).add(each)

    def answer(self) -> Answer:
        calls = [call.whole() for _, call in sorted(self._calls.items())]
        thoughts: str | UnsetType = "".join(self._thoughts) if self._thoughts else UNSET
        return Answer(
            self.text or (None if calls else ""),
            reasoning_content=thoughts,
            tool_calls=calls or UNSET,
        )


@dataclass
class _Call:
    """What has arrived of one call."""

    id: str = ""
    name: str = ""
    _arguments: list[str] = field(default_factory=list)

    def add(self, part: ToolCallDelta) -> None:
        self.id = part.id or self.id
        self.name = part.function.name or self.name
        self._arguments.append(part.function.arguments or "")

    def whole(self) -> ToolCall:
        return ToolCall(self.id, FunctionCall(self.name, "".join(self._arguments)))
