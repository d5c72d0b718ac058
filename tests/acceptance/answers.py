"""Greedy answers, and whether two of them are the same."""

from sps2.common.api import Completion
from sps2.common.client import AsyncClient

TOLERANCE = 1e-3
"""Between the two best log-probabilities: a nearer pick is a tie."""


async def ask(client: AsyncClient, prompt: list[int], tokens: int, salt: str) -> Completion:
    """The greedy answer; cached KV is shared within a salt only."""
    return await client.complete(
        prompt, max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=2, cache_salt=salt
    )


def compare(alone: Completion, together: Completion) -> str:
    """What the second answer is beside the first, in words; DIFFERENT if neither equal nor near."""
    one, two = alone.choices[0].logprobs, together.choices[0].logprobs
    assert one is not None
    assert two is not None
    for index, (a, b) in enumerate(zip(one.tokens, two.tokens, strict=True)):
        if a != b:
            top = sorted((one.top_logprobs[index] or {}).values(), reverse=True)
            margin = top[0] - top[1]
            return f"{'near tie' if margin < TOLERANCE else 'DIFFERENT'} at {index} ({margin:.2g})"
    return "equal"
