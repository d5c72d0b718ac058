"""Random blocks of every quantised GGUF type that is kept, as a file has them."""

from typing import Any

import gguf
import numpy as np

HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}
"""Where a block has numbers in float16; all other bytes may have any value."""
LEAST = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
"""Their second number is a minimum."""


def random_blocks(
    kind: str, outputs: int, inputs: int, spread: float = 1.0, seed: int = 0
) -> np.ndarray[Any, Any]:
    """A weight of the type `kind`: [outputs, bytes] uint8, with values of about `spread`."""
    random = np.random.default_rng(seed)
    beside, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = random.integers(0, 256, (outputs, inputs // beside, size), dtype=np.uint8)
    for which, place in enumerate(HALVES[kind]):
        halves = random.normal(size=raw.shape[:2])
        if kind in LEAST:
            halves = np.abs(halves) * (-1 if which and kind.endswith("_1") else 1)
        raw[..., place : place + 2] = halves.astype(np.float16)[..., None].view(np.uint8)
    kept = raw.reshape(outputs, -1)
    values = gguf.dequantize(kept, gguf.GGMLQuantizationType[kind])
    factor = spread / max(float(values.std()), 1e-9)
    for place in HALVES[kind]:
        halves = raw[..., place : place + 2].copy().view(np.float16)
        raw[..., place : place + 2] = (halves * factor).astype(np.float16).view(np.uint8)
    return kept
