"""What the gateway serves and how much of it at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from sps2.common.errors import Invalid, Refused
from sps2.common.model.generation import SamplingDefaults


class Served(msgspec.Struct, frozen=True):
    """The model behind the API, and the bounds of one request."""

    model: str
    max_context: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    eos_ids: tuple[int, ...]
    kv_token_bytes: int
    """Keys and values of one token in all layers."""
    max_choices: int
    fingerprint: str
    created: int
    aliases: tuple[str, ...] = ()
    """Other names that clients may use for the model."""
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    """How tokens are drawn where a request does not say."""
    default_max_tokens: int = 0
    """Of a chat that does not say; 0 leaves as many as the context and the KV pools allow."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the model; answers have the first."""
        return self.model, *self.aliases

    def check_model(self, name: str | None) -> None:
        """Invalid (`model_not_found`) unless `name` is absent or the served model's."""
        if name is not None and name not in self.names:
            others = ", ".join(f"`{each}`" for each in self.aliases)
            also = f" (also called {others})" if others else ""
            raise Invalid(
                f"the model `{name[:200]}` does not exist; `{self.model}`{also} is served here",
                "model",
                "model_not_found",
            )


class Slots:
    """A bound on the requests in work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    def check(self) -> None:
        """Refused if none is free."""
        if self.taken >= self.total:
            raise Refused(f"{self.taken} of {self.total} requests are in work; try again later")

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold `count` slots while the block runs.

        Raises:
            Invalid: there are fewer than `count` in all.
            Refused: not as many are free now.
        """
        if count > self.total:
            raise Invalid(f"{count} choices in one request are over the limit of {self.total}", "n")
        if self.taken + count > self.total:
            raise Refused(f"{self.taken} of {self.total} requests are in work; try again later")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count
