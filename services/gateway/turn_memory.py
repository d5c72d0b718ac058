"""Remembers the tokens of answers, for when the answers come back in a conversation.

Clients send an answer back as text. Tokenised again it can become other tokens than were sampled,
and its KV would not be found in the cache. The memory has the tokens by a hash of what the client
was sent: no text is kept. It is apart for each API key and `cache_salt`.
"""

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from sps2.common.api import ChatDelta, ChatRequest, Message
from sps2.common.text.sampled_turns import Sampled
from sps2.common.text.tokens import Tokenizer
from sps2.common.validation import MALFORMED
from sps2.services.gateway.conversation import Recall, variables_of
from sps2.services.gateway.generate import Job
from sps2.services.gateway.text import Piece

MOST_TURNS = 1 << 16
"""Answers that are remembered at most; the least recently used are forgotten first."""
MOST_BYTES = 64 << 20
"""Bytes of their tokens at most."""
TURN_BYTES = 256
"""Estimated bytes of an answer in the memory besides its tokens."""


Remembered = Callable[[bytes, Sequence[int], str], None]


class Scope(NamedTuple):
    """Whose answers: those of one API key (empty without keys) with one `cache_salt`."""

    key: str
    salt: str


class Call(NamedTuple):
    """A call of an answer."""

    id: str
    name: str
    arguments: str


class _Turn(NamedTuple):
    ids: "array[int]"
    opening: str


class TurnMemory:
    """The tokens of answers that may come back, within limits of number and bytes.

    Any thread may use it: long conversations are tokenised in threads.

    Attributes:
        remembered: called with every answer that is learnt.
    """

    def __init__(
        self, tokenizer: Tokenizer, most_turns: int = MOST_TURNS, most_bytes: int = MOST_BYTES
    ) -> None:
        self._tokenizer = tokenizer
        self._most_turns = most_turns
        self._most_bytes = most_bytes
        self._turns: OrderedDict[bytes, _Turn] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.remembered: Remembered = lambda key, ids, opening: None

    def __len__(self) -> int:
        return len(self._turns)

    def recall(self, scope: Scope) -> Recall:
        """Finds what was sampled for messages of conversations of this scope."""

        def found(message: Message) -> Sampled | None:
            if message.role != "assistant" or not self._turns:
                return None
            calls = [
                Call(each.id, each.function.name, each.function.arguments)
                for each in message.tool_calls or ()
            ]
            thoughts = message.reasoning_content or ""
            key = _key(scope, message.said, thoughts, calls)
            with self._lock:
                turn = self._turns.get(key)
                if turn is None:
                    return None
                self._turns.move_to_end(key)
            names = [each.name for each in calls]
            texts = (message.said, *filter(None, [thoughts, *names]))
            return Sampled(turn.ids, turn.opening, texts, len(texts) == 1)

        return found

    def listener(self, request: ChatRequest, scope: Scope, jobs: Sequence[Job]) -> "Listener":
        """Remembers the answers to a request, each as it ends."""
        return Listener(self, request, scope, jobs, self._tokenizer)

    def turns(self) -> "list[tuple[bytes, array[int], str]]":
        """All that is remembered, as `add` takes it, the least recently used first."""
        with self._lock:
            return [(key, *turn) for key, turn in self._turns.items()]

    def learn(self, key: bytes, ids: Sequence[int], opening: str) -> None:
        """Remember the tokens of an answer that was made here; see `_key`."""
        self.add(key, ids, opening)
        self.remembered(key, ids, opening)

    def add(self, key: bytes, ids: Sequence[int], opening: str) -> None:
        """Remember the tokens of an answer, wherever it was made."""
        turn = _Turn(array("i", ids), opening)
        with self._lock:
            if (before := self._turns.pop(key, None)) is not None:
                self._bytes -= _size(before)
            self._turns[key] = turn
            self._bytes += _size(turn)
            while len(self._turns) > self._most_turns or self._bytes > self._most_bytes:
                _, oldest = self._turns.popitem(last=False)
                self._bytes -= _size(oldest)


@dataclass
class _Heard:
    """What has arrived of one answer: as it was sampled, and as the client is sent it."""

    ids: list[int] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    is_cut: bool = False


class Listener:
    """Follows the answers to one request."""

    def __init__(
        self,
        memory: TurnMemory,
        request: ChatRequest,
        scope: Scope,
        jobs: Sequence[Job],
        tokenizer: Tokenizer,
    ) -> None:
        self._memory = memory
        self._request = request
        self._scope = scope
        self._jobs = jobs
        self._tokenizer = tokenizer
        self._answers = {index: _Heard() for index in range(len(jobs))}
        whole_turns = not request.continue_final_message and (
            request.add_generation_prompt is not False
        )
        as_shown = request.skip_special_tokens is not False and (
            not request.include_stop_str_in_output
        )
        self._listens = whole_turns and as_shown

    def sampled(self, index: int, piece: Piece) -> None:
        """Add what was sampled of answer `index`."""
        if not self._listens:
            return
        heard = self._answers[index]
        heard.ids += [each.id for each in piece.tokens]
        heard.raw.append(piece.text)
        heard.is_cut = heard.is_cut or bool(piece.stop)
        ends = self._jobs[index].sampling.stop_token_ids if piece.finish == "stop" else ()
        if heard.ids and heard.ids[-1] in ends:
            heard.ids.pop()

    def sent(self, choice: ChatDelta) -> None:
        """Add what the client is sent; the last part of an answer makes it remembered."""
        if not self._listens:
            return
        heard, delta = self._answers[choice.index], choice.delta
        heard.content.append(delta.content or "")
        heard.thoughts.append(delta.reasoning_content or "")
        for part in delta.tool_calls or ():
            known = heard.calls.get(part.index, Call("", "", ""))
            heard.calls[part.index] = Call(
                part.id or known.id,
                part.function.name or known.name,
                known.arguments + (part.function.arguments or ""),
            )
        if choice.finish_reason is not None:
            self._ended(self._answers.pop(choice.index))

    def _ended(self, heard: _Heard) -> None:
        content, thoughts = "".join(heard.content), "".join(heard.thoughts)
        calls = [call for _, call in sorted(heard.calls.items())]
        raw = "".join(heard.raw)
        if heard.is_cut or not heard.ids or not all(call.name in raw for call in calls):
            return
        tokenizer = self._tokenizer
        if thoughts or calls:
            unexpected = frozenset(tokenizer.eos_ids)
        else:
            unexpected = tokenizer.special_ids
            if content != raw:
                return
        if not unexpected.isdisjoint(heard.ids):
            return
        opening = tokenizer.opening(bool(self._request.tools), variables_of(self._request))
        if opening:
            self._memory.learn(_key(self._scope, content, thoughts, calls), heard.ids, opening)


def _key(scope: Scope, content: str, thoughts: str, calls: Sequence[Call]) -> bytes:
    """The hash of an answer. Arguments count as values: some protocols write them anew."""
    arguments = [_canonical(call.arguments) for call in calls]
    named = [(call.id, call.name) for call in calls]
    parts = msgspec.msgpack.encode((scope, content, thoughts, named, arguments))
    return hashlib.blake2b(parts, digest_size=20).digest()


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except MALFORMED:
        return arguments


def _size(turn: _Turn) -> int:
    return TURN_BYTES + turn.ids.itemsize * len(turn.ids)
