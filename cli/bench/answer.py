"""Predicts the tokens after a prefill, by exact attention over its KV, as in decoding."""

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.cli.bench.group import Filled
from sps2.common.model.llama import Llama
from sps2.kernels import Run, attention


def predicted(model: Llama, filled: Filled, answer: Sequence[int]) -> list[int]:
    """The most likely token at each position of `answer`, given the tokens before it.

    `filled` must have its keys and values (`keep`).
    """
    tokens = len(filled.hidden)

    async def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(
            q,
            torch.cat((filled.keys[layer], k)),
            torch.cat((filled.values[layer], v)),
            queries=[Run(0, tokens, len(q))],
            keys=[Run(0, 0, tokens + len(k))],
            scale=model.config.scale,
            window=model.config.window(layer),
        ).out.to(q.dtype)

    hidden = filled.hidden[-1:]
    if given := answer[:-1]:
        positions = torch.arange(tokens, tokens + len(given))
        following = asyncio.run(model.forward(torch.tensor(given), positions, attend))
        hidden = torch.cat((hidden, following))
    best: list[int] = model.logits(hidden).argmax(-1).tolist()
    return best
