"""What the benchmark needs of a peer, whatever it is: to start it, ask it, and stop it."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from peers.process import Process

Fields = Mapping[str, object]
NO_FIELDS: Fields = {}


class PeerFailed(Exception):
    """A peer did not come up, ended, or refused a request; the message has the end of its log."""


class Missing(Exception):
    """A peer is not installed; the message says how to install it."""


@dataclass
class Reply:
    """The tokens of one prompt as they come in. All times are those of `time.perf_counter`."""

    sent_s: float = field(default_factory=time.perf_counter)
    stamps_s: list[float] = field(default_factory=list)
    """When each token was here."""
    text: str = ""

    def arrive(self, tokens: int, text: str = "") -> None:
        """Note that this many more tokens are here now."""
        self.stamps_s += [time.perf_counter()] * tokens
        self.text += text

    @property
    def ttft_s(self) -> float:
        return self.stamps_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """Between one token and the next."""
        return [after - before for before, after in itertools.pairwise(self.stamps_s)]


class Peer(Protocol):
    """A peer that is up, or can be brought up."""

    process: Process
    version: str
    """As it says itself; empty before it is up."""
    is_server: bool
    """Whether it takes a request while others run."""

    async def start(self) -> None:
        """Return when it can be asked. Raises PeerFailed."""

    async def ask(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        replies: Sequence[Reply],
        fields: Fields = NO_FIELDS,
    ) -> None:
        """Have each prompt, of token ids, answered greedily with `tokens` tokens, all at once.

        Args:
            replies: filled in as tokens come, one for each prompt. A server can be left early.
            fields: what the body of the request has beyond the usual; only for servers.

        Raises:
            PeerFailed: it refused, ended, or answered with too few tokens.
        """

    async def stop(self) -> None:
        """End all of its processes; nothing happens if they have ended."""
