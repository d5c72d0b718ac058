"""What one process of a tensor-parallel shard has of a model; imports no torch."""

from typing import NamedTuple

import msgspec

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span


class Share(NamedTuple):
    """One of `size` equal parts: of heads, of the MLP's inner size, of the vocabulary."""

    rank: int
    size: int

    def of(self, whole: int) -> Span:
        """This part of so many."""
        part = whole // self.size
        return Span(self.rank * part, (self.rank + 1) * part)


WHOLE = Share(0, 1)


def share_of(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of one of `size` shares; the vocabulary is that of the embedding, which is whole.

    Raises:
        Invalid: the model cannot be split in so many equal parts; it says what is possible.
    """
    parts = {
        "heads": config.heads,
        "KV heads": config.kv_heads,
        "MLP rows": config.intermediate_size,
        "tokens of vocabulary": config.vocab_size,
    }
    if any(count % size for count in parts.values()):
        counts = ", ".join(f"{count} {name}" for name, count in parts.items())
        sizes = range(1, config.kv_heads + 1)
        possible = [each for each in sizes if not any(n % each for n in parts.values())]
        raise Invalid(
            f"tp {size} cannot split {counts} evenly; possible are {', '.join(map(str, possible))}"
        )
    return msgspec.structs.replace(
        config,
        heads=config.heads // size,
        kv_heads=config.kv_heads // size,
        intermediate_size=config.intermediate_size // size,
    )
