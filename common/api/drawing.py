"""Fields of a request about how the tokens of an answer are drawn, and what ends it."""

from typing import Annotated

from msgspec import Meta

from sps2.common.api.unsupported_fields import Tolerant

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1, extra={"noun": "token id"})]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(max_length=1024)]


class Drawing(Tolerant, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are drawn, and what ends an answer; null is the same as absent."""

    temperature: Annotated[float, Meta(ge=0, le=2, description="0 is greedy")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1, description="0 is greedy")] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1 and 0 are off")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description="0 is off")] | None = None
    seed: (
        Annotated[
            int,
            Meta(ge=-(2**63), le=2**63 - 1, description="the same draws again; random if absent"),
        ]
        | None
    ) = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=32)] | None,
        Meta(description="one that is a special token of the model ends answers by its id"),
    ] = None
    stop_token_ids: (
        Annotated[list[TokenId], Meta(max_length=64, description="as well as the model's own")]
        | None
    ) = None
    presence_penalty: (
        Annotated[Penalty, Meta(description="of tokens that the answer has")] | None
    ) = None
    frequency_penalty: (
        Annotated[Penalty, Meta(description="the same, for each time that it has them")] | None
    ) = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100, description="1 is off")] | None = None
    logit_bias: (
        Annotated[dict[str, Bias], Meta(max_length=1024, description="by token id, as a string")]
        | None
    ) = None
    ignore_eos: Annotated[
        bool | None, Meta(description="the model's own tokens do not end an answer")
    ] = None
    min_tokens: (
        Annotated[Count, Meta(description="nothing ends an answer before; at most `max_tokens`")]
        | None
    ) = None
