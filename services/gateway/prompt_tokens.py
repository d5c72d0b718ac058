"""The prompt's token ids and log-probabilities, for requests that want them."""

from collections.abc import Sequence

from msgspec import UNSET

from sps2.common.api import ChatRequest, CompletionRequest
from sps2.common.api.prompt_answers import PromptLogprob, PromptTokens
from sps2.common.messages import TokenLogprobs
from sps2.services.gateway.generate import Job, Record
from sps2.services.gateway.logprobs import Vocabulary, finite
from sps2.services.gateway.threads import threaded


async def prompt_tokens(
    request: CompletionRequest | ChatRequest, job: Job, record: Record, vocabulary: Vocabulary
) -> PromptTokens:
    """What the request wants to know of the prompt of `job`, once its first token has come."""
    ids = list(job.prompt) if request.return_token_ids else UNSET
    top = request.prompt_logprobs
    if top is None:
        return PromptTokens(ids)
    first = record.first
    scores = first.prompt_logprobs if first is not None else None
    listed = await threaded(
        len(job.prompt) * (1 + top),
        lambda: [
            None if each is None else _by_id(token, each, top, vocabulary)
            for token, each in zip(job.prompt, scores or (), strict=False)
        ],
    )
    return PromptTokens(ids, listed)


def _by_id(
    token: int, logprobs: TokenLogprobs, top: int, vocabulary: Vocabulary
) -> dict[str, PromptLogprob]:
    ranked: Sequence[tuple[int, tuple[int, float]]] = list(enumerate(logprobs.top[:top], 1))
    found = {
        str(each): PromptLogprob(finite(logprob), rank, vocabulary.token_text(each))
        for rank, (each, logprob) in ranked
    }
    own = PromptLogprob(finite(logprobs.logprob), logprobs.rank, vocabulary.token_text(token))
    found.setdefault(str(token), own)
    return found
