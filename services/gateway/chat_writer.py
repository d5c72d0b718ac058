"""Turns pieces of answers into the choices of a chat's chunks: text, thoughts and calls."""

import secrets

from msgspec import UNSET
from msgspec.structs import replace

from sps2.common.api import (
    ChatDelta,
    ChatFinish,
    ChatRequest,
    Delta,
    FunctionDelta,
    ToolCallDelta,
)
from sps2.common.messages import FinishReason
from sps2.services.gateway.logprobs import Vocabulary, chat_logprobs
from sps2.services.gateway.text import Piece, Spoken
from sps2.services.gateway.tools.events import Arguments, Called, Event, Text, Thought
from sps2.services.gateway.tools.reading import Reading

CALL_ID = "call_"


class ChatWriter:
    """Writes all choices of one chat."""

    def __init__(self, request: ChatRequest, reading: Reading, vocabulary: Vocabulary) -> None:
        self._request = request
        self._reading = reading
        self._vocabulary = vocabulary
        self._choices: dict[int, _Choice] = {}

    def choices(self, index: int, piece: Piece) -> list[ChatDelta]:
        """What choice `index` has anew, in order; the last part of a choice has why it ended."""
        choice = self._choices.get(index)
        if choice is None:
            thinks = self._request.include_reasoning is not False
            choice = self._choices[index] = _Choice(self._reading, thinks)
        written = [self._written(index, delta, choice) for delta in choice.deltas(piece)]
        if written and piece.finish is not None:
            finish, stop = choice.finish(piece.finish), piece.stop or UNSET
            written[-1] = replace(written[-1], finish_reason=finish, stop_reason=stop)
        return written

    def _written(self, index: int, delta: Delta, choice: "_Choice") -> ChatDelta:
        request, logprobs = self._request, None
        tokens, ids = choice.unlisted()
        if request.logprobs:
            logprobs = chat_logprobs(tokens, request.top_logprobs or 0, self._vocabulary)
        listed = ids if request.return_token_ids else UNSET
        return ChatDelta(index, delta, logprobs, token_ids=listed)


class _Choice:
    """One answer, as far as it has come; `thinks`: whether its thoughts are written."""

    def __init__(self, reading: Reading, thinks: bool) -> None:
        self._thinks = thinks
        self._parser = reading.parser()
        self._several = reading.several
        self._calls = 0
        self._drops = False
        self._tokens: list[Spoken] = []
        self._ids: list[int] = []

    def deltas(self, piece: Piece) -> list[Delta]:
        """The parts of the answer that a piece completes; at least one at its end."""
        self._tokens += piece.tokens
        self._ids += piece.ids
        if self._parser is None:
            has_any = piece.text or piece.tokens or piece.finish
            return [Delta(content=piece.text)] if has_any else []
        events = self._parser.add(piece.text)
        if piece.finish is not None:
            events += self._parser.close()
        parts: list[Delta] = []
        for event in events:
            self._write(event, parts)
        return parts or ([Delta()] if piece.finish is not None else [])

    def unlisted(self) -> tuple[list[Spoken], list[int]]:
        """The tokens that no part has listed yet, and their ids with those that are not shown."""
        tokens, self._tokens, ids, self._ids = self._tokens, [], self._ids, []
        return tokens, ids

    def finish(self, reason: FinishReason) -> ChatFinish:
        """Why the answer ended: it calls, if it did not end before its time."""
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _write(self, event: Event, parts: list[Delta]) -> None:
        match event:
            case Text(text):
                parts.append(Delta(content=text))
            case Thought(text) if self._thinks:
                parts.append(Delta(reasoning_content=text))
            case Called(name):
                self._drops = bool(self._calls) and not self._several
                if not self._drops:
                    call_id = f"{CALL_ID}{secrets.token_hex(12)}"
                    function = FunctionDelta(name, "")
                    begun = ToolCallDelta(self._calls, call_id, "function", function)
                    parts.append(Delta(tool_calls=[begun]))
                    self._calls += 1
            case Arguments(text) if not self._drops:
                part = ToolCallDelta(self._calls - 1, function=FunctionDelta(arguments=text))
                parts.append(Delta(tool_calls=[part]))
