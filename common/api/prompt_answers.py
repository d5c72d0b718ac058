"""What an answer says of its prompt's tokens, as vLLM does."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from sps2.common.messages import Struct


class PromptLogprob(Struct, frozen=True):
    """One of the tokens that could have been at a position of the prompt."""

    logprob: Annotated[float, Meta(description="its log-probability")]
    rank: Annotated[int, Meta(description="1 for the most likely token of the vocabulary")]
    decoded_token: Annotated[str, Meta(description="its text")]


PromptTokenIds = Annotated[
    list[int] | UnsetType, Meta(description="with `return_token_ids`: the prompt's tokens")
]
TokenIds = Annotated[
    list[int] | UnsetType, Meta(description="with `return_token_ids`: the tokens that were drawn")
]
PromptLogprobs = Annotated[
    list[dict[str, PromptLogprob] | None] | UnsetType,
    Meta(
        description="with `prompt_logprobs`: of each token of the prompt, by token id; null for "
        "the first"
    ),
]


class PromptTokens(Struct, frozen=True):
    """The fields of an answer that are about its prompt."""

    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
