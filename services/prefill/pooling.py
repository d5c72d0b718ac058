"""A rank's part of a prompt's embedding."""

from functools import partial

import torch
from torch import Tensor

from sps2.common.device import Device
from sps2.common.messages import Pooling
from sps2.common.model.attend import Run


async def pooled(
    pooling: Pooling | None, hidden: Tensor, draws: bool, device: Device, run: Run
) -> bytes:
    """The part as `Prefilled` has it.

    Args:
        hidden: [rows, hidden_size], of all tokens of the rank's spans, or at least of the prompt's
            last one where that is wanted.
        draws: whether the rank has the prompt's last token.
        run: runs the sum.
    """
    if pooling is None or not len(hidden) or (pooling == "last" and not draws):
        return b""
    total = await run(partial(_sum, hidden if pooling == "mean" else hidden[-1:]))
    (down,) = await device.down((total,))
    return bytes(down.numpy().astype("<f4").tobytes())


def _sum(rows: Tensor) -> Tensor:
    """In float32: a mean over a long prompt adds up what a narrower type cannot."""
    return rows.sum(0, dtype=torch.float32)
