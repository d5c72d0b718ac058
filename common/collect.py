"""Folds the chunks of a streamed completion into the object that answers a plain request."""

from collections.abc import AsyncIterable, Iterable

from sps2.common.api import (
    Answer,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
)
from sps2.common.errors import Internal
from sps2.common.usage import Usage


async def collect_completion(chunks: AsyncIterable[CompletionChunk]) -> Completion:
    """Every choice's text and log-probabilities in one piece. Internal if the usage is missing."""
    first: CompletionChunk | None = None
    pieces: dict[int, list[CompletionChoice]] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.setdefault(choice.index, []).append(choice)
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Completion(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[_completion_choice(index, pieces[index]) for index in sorted(pieces)],
        usage=usage,
    )


async def collect_chat(chunks: AsyncIterable[ChatChunk]) -> Chat:
    """Every choice's message in one piece. Internal if the usage is missing."""
    first: ChatChunk | None = None
    pieces: dict[int, list[ChatDelta]] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.setdefault(choice.index, []).append(choice)
    if first is None or usage is None:
        raise Internal("the answer ended without its usage")
    return Chat(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[_chat_choice(index, pieces[index]) for index in sorted(pieces)],
        usage=usage,
    )


def _completion_choice(index: int, pieces: Iterable[CompletionChoice]) -> CompletionChoice:
    pieces = list(pieces)
    lists = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    logprobs = sum(lists, CompletionLogprobs([], [], [], []))
    return CompletionChoice(
        index,
        "".join(piece.text for piece in pieces),
        logprobs if lists else None,
        pieces[-1].finish_reason,
    )


def _chat_choice(index: int, pieces: Iterable[ChatDelta]) -> ChatChoice:
    pieces = list(pieces)
    lists = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return ChatChoice(
        index,
        Answer("".join(piece.delta.content or "" for piece in pieces)),
        ChatLogprobs([entry for each in lists for entry in each.content]) if lists else None,
        pieces[-1].finish_reason,
    )
