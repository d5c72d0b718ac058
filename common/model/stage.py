"""The stage of a model that one process of a pipeline-parallel shard has; imports no torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.model.tensor_names import EMBEDDING, HEAD
from sps2.common.spans import Span

Weight = TypeVar("Weight")


class Stage(NamedTuple):
    """One of `size` ranges of consecutive layers. The first has the embedding and the head too."""

    rank: int
    size: int
    layers: Span
    whole: int
    """Layers of the whole model."""

    @property
    def is_first(self) -> bool:
        return not self.rank

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def of(self, config: ModelConfig) -> ModelConfig:
        """The shape of this stage of a model: its layers count from 0."""
        windows = config.windows[self.layers.start : self.layers.stop]
        return replace(config, layers=self.layers.tokens, windows=windows)

    def weights(self, tensors: Mapping[str, Weight]) -> dict[str, Weight]:
        """The weights of this stage, from those of the whole model; layers count from 0."""
        found = {}
        for name, tensor in tensors.items():
            _, _, layer = name.partition("model.layers.")
            if layer:
                index, _, part = layer.partition(".")
                if int(index) in range(self.layers.start, self.layers.stop):
                    found[f"model.layers.{int(index) - self.layers.start}.{part}"] = tensor
            elif self.is_first or name not in (EMBEDDING, HEAD):
                found[name] = tensor
        return found


def stage_of(config: ModelConfig, rank: int, size: int) -> Stage:
    """Stage `rank` of `size`, so that the stage with the most weights has as few as possible.

    Raises:
        Invalid: there are fewer layers than stages; the message says what is possible.
    """
    if size > config.layers:
        raise Invalid(
            f"pp {size} cannot split {config.layers} layers: each stage takes one at least; "
            f"possible are 1 to {config.layers}"
        )
    layer = config.products // config.layers
    ends = config.vocab_size * config.hidden_size * (1 if config.tied else 2)
    others = size - 1

    def largest(first: int) -> int:
        rest = -(-(config.layers - first) // others) if others else 0
        return max(ends + first * layer, rest * layer)

    first = min(range(config.layers - others, 0, -1), key=largest) if others else config.layers
    rest = config.layers - first
    edges = [0, first, *(first + rest * stage // others for stage in range(1, size))]
    return Stage(rank, size, Span(edges[rank], edges[rank + 1]), config.layers)
