"""The online softmax of all attention kernels, in powers of two.

Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def weigh(scores, factor, peak, weight, MAY_BE_BLIND: tl.constexpr):
    """Returns exp2(scores * factor - peak), the new peak and weight, and the factor of older ones.

    scores: [rows, keys], -inf where a key is hidden; peak and weight: [rows], of older keys.
    """
    higher = tl.maximum(peak, tl.max(scores, 1) * factor)
    base = higher
    if MAY_BE_BLIND:
        base = tl.where(higher == float("-inf"), 0.0, higher)
    shares = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(peak - base)
    return shares, higher, weight * shrink + tl.sum(shares, 1), shrink


@triton.jit
def operand(x, like):
    """Convert x, which may be int8, to the dtype of the other operand of a product."""
    if INTERPRETED:  # the interpreter converts to bfloat16 only from float32
        x = x.to(tl.float32)
    return x.to(like.dtype)


@triton.jit
def product(a, b, onto):
    """onto + a @ b; float32 operands are multiplied in float32, not in tf32."""
    if INTERPRETED:  # numpy has no bfloat16: the interpreter would multiply its bits
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, onto, input_precision="ieee")


@triton.jit
def finish(peak, weight):
    """The divisor of the output, and the log-sum-exp."""
    seen = weight > 0
    whole = tl.where(seen, weight, 1.0)
    return whole, tl.where(seen, (peak + tl.log2(whole)) * LN2, float("-inf"))
