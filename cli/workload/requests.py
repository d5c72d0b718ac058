"""The requests of a workload."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec


class Turn(msgspec.Struct, frozen=True):
    """One request.

    at_s: when it is sent, in seconds since the start. prompt_tokens, answer_tokens: their lengths.
    blocks: what its prompt consists of, from its beginning: one id for every
        `Workload.block_tokens` tokens, the last one perhaps for fewer. Equal ids stand for equal
        text, and so for KV that may be cached. Empty: it shares nothing with others.
    session: its conversation; empty if it belongs to none. think_s: it is sent so many seconds
        after the answer to the turn before it in its session; None: at `at_s`, whatever the others
        do. The first turn of a session is always sent at `at_s`.
    caller: who sends it; callers share a cluster fairly.
    """

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()
    session: str = ""
    think_s: float | None = None
    caller: str = ""


@dataclass(frozen=True)
class Workload:
    """Requests in the order of `at_s`; turns of one session are in their order.

    name: of the trace or distribution, for people.
    """

    name: str
    turns: Sequence[Turn]
    block_tokens: int = 512
