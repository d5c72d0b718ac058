"""What came back for one request, and when."""

from dataclasses import dataclass, field
from typing import Literal

from sps2.common.api.usage import Sps2Usage

State = Literal["waiting", "running", "done", "failed"]


@dataclass(slots=True)
class Reply:
    """Times are those of `time.perf_counter`.

    due_s: when it was to be sent. ready_s: when the client set about it. sent_s: when it was sent,
        after waiting for its place among `--max-concurrency`.
    stamps_s: when each chunk of the answer came; most servers send one for each token.
    """

    due_s: float
    prompt_tokens: int
    ready_s: float = 0.0
    sent_s: float = 0.0
    stamps_s: list[float] = field(default_factory=list)
    told_tokens: int | None = None
    """Tokens of the answer as the server counted them."""
    cached_tokens: int = 0
    details: Sps2Usage | None = None
    """How SPS2 served it; only of the SDK."""
    text: str = ""
    error: str = ""
    state: State = "waiting"

    @property
    def answer_tokens(self) -> int:
        return len(self.stamps_s) if self.told_tokens is None else self.told_tokens

    @property
    def ttft_s(self) -> float:
        return self.stamps_s[0] - self.sent_s

    @property
    def e2el_s(self) -> float:
        """From sending to the last chunk with a part of the answer."""
        return self.stamps_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; 0 for answers of one token."""
        rest = self.answer_tokens - 1
        return (self.e2el_s - self.ttft_s) / rest if rest > 0 else 0.0

    @property
    def queue_s(self) -> float:
        """How long it waited for its place among `--max-concurrency`."""
        return self.sent_s - self.ready_s
