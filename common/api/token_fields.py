"""Fields of a request about single tokens: of its prompt, of its answer, and which may be drawn."""

from typing import Annotated

from msgspec import Meta

from sps2.common.api.drawing import TokenId
from sps2.common.api.structured import GrammarFields

TruncatePromptTokens = (
    Annotated[
        int,
        Meta(
            ge=-1,
            le=2**31 - 1,
            description="the prompt is cut to its last tokens, this many; -1 is as many as the "
            "context has beside `max_tokens`",
        ),
    ]
    | None
)
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]


class TokenFields(GrammarFields, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of both kinds of completion that vLLM has, and OpenAI's API has not."""

    prompt_logprobs: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=20,
                description="log-probabilities of the prompt's tokens, each with this many "
                "alternatives; nothing cached is used then",
            ),
        ]
        | None
    ) = None
    truncate_prompt_tokens: TruncatePromptTokens = None
    allowed_token_ids: (
        Annotated[
            list[TokenId],
            Meta(min_length=1, max_length=1 << 14, description="no other tokens are drawn"),
        ]
        | None
    ) = None
    bad_words: (
        Annotated[
            list[BadWord],
            Meta(
                max_length=256,
                description="words that are not drawn as the tokens that they are tokenised to; "
                "other tokens can still spell them",
            ),
        ]
        | None
    ) = None
    skip_special_tokens: Annotated[
        bool | None, Meta(description="false shows special tokens in the text; true if absent")
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None,
        Meta(description="the text has what ended it: the stop string, or the token's text"),
    ] = None
    return_token_ids: Annotated[
        bool | None,
        Meta(description="the answer has `prompt_token_ids` and `token_ids`, as vLLM's has"),
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, Meta(description="log-probabilities name tokens as `token_id:123`")
    ] = None
