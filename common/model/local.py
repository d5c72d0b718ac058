"""Attention with all KV in one place: the reference for every other `Attend`."""

import torch
from torch import Tensor

from sps2.common.model.config import ModelConfig


class LocalAttention:
    """Plain softmax attention in float32. The sequence's KV grows with every forward.

    `positions` are of the next forward's tokens; set them before each.
    """

    def __init__(self, config: ModelConfig, positions: Tensor) -> None:
        self.positions = positions
        self._config = config
        self._keys: list[Tensor | None] = [None] * config.layers
        self._values: list[Tensor | None] = [None] * config.layers
        self._places: list[Tensor | None] = [None] * config.layers

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to every key at or before each query's position, within the layer's window."""
        keys = self._keys[layer] = _joined(self._keys[layer], k)
        values = self._values[layer] = _joined(self._values[layer], v)
        places = self._places[layer] = _joined(self._places[layer], self.positions)

        behind = self.positions[:, None] - places
        visible = behind >= 0
        window = self._config.window(layer)
        if window is not None:
            visible &= behind < window

        groups = self._config.heads // self._config.kv_heads
        keys, values = (x.float().repeat_interleave(groups, 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * self._config.scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)


def _joined(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat((old, new))
