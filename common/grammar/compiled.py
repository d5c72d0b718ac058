"""Compiles the grammars of one model, and keeps those that were used last."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from sps2.common.errors import Internal, Invalid
from sps2.common.grammar.matcher import FAILED, Matcher, reason

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from sps2.common.text.tokens import Tokenizer

NAME = "grammar"
MOST_BYTES = 128 << 10
"""Of a grammar's text."""
KEPT = 64
"""Compiled grammars that are kept."""
THREADS = 2
"""Grammars that are compiled at a time."""
STACK_BYTES = 256 << 20
"""Of a thread that compiles. The library calls itself for every rule that leads to another: a text
of `MOST_BYTES` needs up to 64 MB, without which the process would end. Only what is used counts."""
MOST_ITEMS = 5000
"""Rules under way that are tried for one token: a few milliseconds of work."""
MOST_STATES = 50_000
"""Of an answer's lexer: each takes 1 to 2 kB."""
PROBED = 4
"""Tokens that a new grammar must get through."""


class Grammars:
    """Compiled grammars over a model's vocabulary; errors are kept like them.

    The library compiles without Python's lock, usually in a millisecond, and a very large schema in
    a second: no event loop should wait for it. To make this object takes a third of a second for
    49,000 tokens, with the lock: do so before anybody waits.

    Args:
        tokenizer: as JSON (tokenizer.json).
        eos_ids: all tokens that end generation.
    """

    def __init__(self, tokenizer: str, eos_ids: Sequence[int]) -> None:
        self.threads = _threads()
        """Where grammars are compiled; the methods may be called there and elsewhere."""
        self._kept: OrderedDict[str, LLMatcher | str] = OrderedDict()
        self._lock = threading.Lock()
        self._unfit = ""
        try:
            import llguidance

            self._limits = llguidance.LLParserLimits(
                verbose_errors=False, step_max_items=MOST_ITEMS, max_lexer_states=MOST_STATES
            )
            self._tokenizer = llguidance.LLTokenizer(tokenizer, eos_token=list(eos_ids) or None)
            ids = range(self._tokenizer.vocab_size)
            self._special = np.array([*filter(self._tokenizer.is_special_token, ids)], np.int64)
        except (ImportError, ValueError) as error:
            self._unfit = str(error).partition("\n")[0]

    def check(self, grammar: str) -> None:
        """Raise Invalid if no answer can follow `grammar`, or if it is too large."""
        self._compiled(grammar)

    def matcher(self, grammar: str, tokens: Iterable[int] = ()) -> Matcher:
        """A matcher behind the tokens that an answer already has.

        Raises:
            Invalid: see `check`; or no text follows the tokens, or only with too much work.
            Internal: the tokens do not follow the grammar.
        """
        matcher = Matcher(self._compiled(grammar).deep_copy(), self._tokenizer, self._special)
        if tokens := list(tokens):
            matcher.advance(*tokens)
        return matcher

    async def begin(self, grammar: str, tokens: Iterable[int] = ()) -> Matcher:
        """As `matcher`, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, self.matcher, grammar, tokens)

    def _compiled(self, grammar: str) -> "LLMatcher":
        if (size := len(grammar.encode())) > MOST_BYTES:
            raise Invalid(f"the grammar is too large: {size} bytes; the most is {MOST_BYTES}")
        with self._lock:
            found = self._kept.pop(grammar, None)
            if found is not None:
                self._kept[grammar] = found  # the last one used
        if found is None:
            if threading.current_thread().name.startswith(NAME):
                found = self._compile(grammar)
            else:
                found = self.threads.submit(self._compile, grammar).result()
            with self._lock:
                self._kept[grammar] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if isinstance(found, str):
            raise Invalid(found)
        return found

    def _compile(self, grammar: str) -> "LLMatcher | str":
        """A matcher at the beginning, or why there is none."""
        if self._unfit:
            return f"answers of this model cannot follow a grammar: {self._unfit}"
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            return reason(matcher)
        matcher.compute_bitmask()  # the first takes longest
        return self._obstacle(matcher) or matcher

    def _obstacle(self, matcher: "LLMatcher") -> str:
        """Why the first tokens cannot be drawn; empty if they can."""
        probe = Matcher(matcher.deep_copy(), self._tokenizer, self._special)
        scores = np.empty(self._tokenizer.vocab_size, np.float32)
        try:
            for number in range(PROBED):
                if number and probe.ended:  # a grammar that no text follows has ended too
                    break
                scores.fill(0)
                probe.ban(scores)
                probe.advance(int(scores.argmax()))
        except (Internal, Invalid) as error:
            return str(error).removeprefix(FAILED)
        return ""


def _threads() -> ThreadPoolExecutor:
    """Threads with stacks of `STACK_BYTES`; they run already, since the size is the process's."""
    before = threading.stack_size(STACK_BYTES)
    try:
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix=NAME)
        together = threading.Barrier(THREADS)
        for each in [threads.submit(together.wait) for _ in range(THREADS)]:
            each.result()
    finally:
        threading.stack_size(before)
    return threads


def check(grammar: str, tokenizer: "Tokenizer") -> None:
    """Raise Invalid if no answer of the model can follow `grammar`; takes its time."""
    tokenizer.grammars.check(grammar)
