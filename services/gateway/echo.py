"""The prompt as the beginning of its completion's text."""

from collections.abc import Sequence

from sps2.common.messages import TokenLogprobs
from sps2.common.tokens import Detokenizer, Tokenizer
from sps2.services.gateway.text import Spoken


def echo(
    prompt: Sequence[int],
    given: str | None,
    logprobs: Sequence[TokenLogprobs | None] | None,
    tokenizer: Tokenizer,
) -> tuple[str, tuple[Spoken, ...]]:
    """The prompt's text, as it was given or else decoded, and where each token's text begins."""
    detokenizer = Detokenizer(tokenizer)
    spoken, parts, offset = [], list[str](), 0
    for place, token in enumerate(prompt):
        known = logprobs[place] if logprobs is not None and place < len(logprobs) else None
        spoken.append(Spoken(token, offset, known))
        parts.append(detokenizer.feed(token))
        offset += len(parts[-1])
    parts.append(detokenizer.flush())
    return "".join(parts) if given is None else given, tuple(spoken)
