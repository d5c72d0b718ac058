"""Compiles a GPU's kernels at start, so that no request waits for that."""

import logging

from sps2.common.model.llama import Llama
from sps2.kernels.gpu.launches import Model, launch_all, log_later_ones

log = logging.getLogger(__name__)


def warm_up(model: Llama, eight_bits: bool) -> None:
    """Compile, or load from Triton's cache, every kernel that a shard of `model` can launch.

    Call it before the shard becomes a member: then no time-out of others counts compilation.

    Args:
        eight_bits: whether KV pages are int8.
    """
    log.info("compiling the GPU's kernels; what was compiled before comes from Triton's cache")
    count, took_s = launch_all(launched_by(model, eight_bits), model.device)
    log.info("%d launches of kernels took %.1f s", count, took_s)
    log_later_ones()


def launched_by(model: Llama, eight_bits: bool) -> Model:
    """What the launches of a shard process with this share of a model depend on."""
    config = model.config
    return Model(
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.hidden_size,
        config.intermediate_size,
        model.dtype,
        tuple(sorted({window is not None for window in config.windows})),
        eight_bits,
        config.qk_norm,
    )
