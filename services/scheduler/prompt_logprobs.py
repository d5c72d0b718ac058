"""The log-probabilities of a prompt, from those of its parts."""

from collections.abc import Sequence

from sps2.common.messages import Prefilled, Submit, TokenLogprobs


def prompt_logprobs(
    submit: Submit, replies: Sequence[Prefilled]
) -> tuple[TokenLogprobs | None, ...] | None:
    """The ranks' log-probabilities in order of position; the first token of a prompt has none."""
    if submit.sampling.prompt_logprobs is None:
        return None
    by_position = dict(pair for reply in replies for pair in reply.prompt_logprobs)
    return tuple(by_position.get(position) for position in range(len(submit.prompt) // 4))
