"""The prompt as the beginning of a completion's text (`echo`)."""

from collections.abc import Sequence

from sps2.common.messages import TokenLogprobs
from sps2.common.text.tokens import Detokenizer, Tokenizer
from sps2.services.gateway.text import Spoken


def echo(
    prompt: Sequence[int],
    given: str | None,
    logprobs: Sequence[TokenLogprobs | None] | None,
    tokenizer: Tokenizer,
) -> tuple[str, tuple[Spoken, ...]]:
    """The prompt's text, as given or else decoded, and where each token's text begins.

    Special tokens are shown, except those that the tokeniser put around a given text.
    """
    detokenizer = Detokenizer(tokenizer)
    spoken, parts, offset = [], list[str](), 0
    for place, token in enumerate(prompt):
        known = logprobs[place] if logprobs is not None and place < len(logprobs) else None
        spoken.append(Spoken(token, offset, known))
        text = detokenizer.feed(token)
        if token in tokenizer.special_ids:
            spelled = tokenizer.token_text(token)
            text = spelled if given is None or given.startswith(spelled, offset) else ""
        parts.append(text)
        offset += len(text)
    parts.append(detokenizer.flush())
    return "".join(parts) if given is None else given, tuple(spoken)
