"""The prompts of a completion: texts or token ids, checked and tokenised."""

from sps2.common.api import CompletionRequest
from sps2.common.errors import Invalid
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.limits import BAD, Limit, check_ids
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.threads import threaded


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts as given. Raises Invalid if there are none, or of both kinds."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Invalid("`prompt` is empty", "prompt", BAD)
    if all(isinstance(each, int) for each in prompt):
        return [[each for each in prompt if isinstance(each, int)]]
    if all(isinstance(each, str) for each in prompt) or all(
        isinstance(each, list) for each in prompt
    ):
        return [each for each in prompt if not isinstance(each, int)]
    raise Invalid("`prompt` mixes strings and token ids", "prompt", BAD)


def check_prompt(given: str | list[int], served: Served, limit: Limit) -> None:
    """Raise Invalid if a prompt is wrong, as far as can be seen before it is tokenised."""
    if not given:
        raise Invalid("`prompt` is empty", "prompt", BAD)
    if isinstance(given, list):
        check_ids(given, served, "prompt")
        if limit.truncate is None:
            limit.room(len(given))


async def tokens_of(
    given: str | list[int], tokenizer: Tokenizer, limit: Limit, special: bool
) -> tuple[int, ...]:
    """The token ids of a prompt.

    Args:
        special: whether a text gets the model's special tokens, e.g. its BOS.

    Raises:
        Invalid: it has none, or too many.
    """
    if isinstance(given, list):
        return limit.cut(tuple(given))
    tokens = await threaded(len(given), lambda: tokenizer.encode(given, special, most=limit.most))
    if not tokens:
        raise Invalid("`prompt` has no tokens", "prompt", BAD)
    return limit.cut(tuple(tokens))
