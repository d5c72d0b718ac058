"""Folds the chunks of a stream into the object that answers a request without `stream`."""

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from sps2.common.api import (
    Answer,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
)
from sps2.common.api.usage import Usage
from sps2.common.errors import Internal
from sps2.common.messages import FinishReason

L = TypeVar("L")


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
    choices: dict[int, _Choice[CompletionLogprobs]] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for each in chunk.choices:
            choice = choices.get(each.index) or choices.setdefault(each.index, _Choice(listed))
            choice.add(each.text, each.logprobs, each.finish_reason)
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Completion(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[
            CompletionChoice(index, each.text, each.logprobs, each.finish_reason)
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
    choices: dict[int, _Choice[ChatLogprobs]] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for each in chunk.choices:
            choice = choices.get(each.index) or choices.setdefault(each.index, _Choice(listed))
            choice.add(each.delta.content or "", each.logprobs, each.finish_reason)
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Chat(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[
            ChatChoice(index, Answer(each.text), each.logprobs, each.finish_reason)
            for index, each in sorted(choices.items())
        ],
        usage=usage,
    )


@dataclass
class _Choice(Generic[L]):
    """What has arrived of one choice."""

    _listed: Callable[[], Listed[L]]
    finish_reason: FinishReason | None = None
    _texts: list[str] = field(default_factory=list)
    _list: Listed[L] | None = None

    def add(self, text: str, logprobs: L | None, finish_reason: FinishReason | None) -> None:
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
