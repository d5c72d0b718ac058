"""Embeddings: texts as vectors, of the served model's hidden states."""

from typing import Annotated, Literal

from msgspec import Meta

from sps2.common.api.requests import CacheSalt, Extension, Prompt
from sps2.common.api.token_fields import TruncatePromptTokens
from sps2.common.api.unsupported_fields import Tolerant, ignored, only
from sps2.common.api.usage import Sps2Usage
from sps2.common.messages import Pooling, Struct


class Embedding(Struct, frozen=True):
    """One vector, of length 1."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    """What the vectors took."""

    prompt_tokens: int
    total_tokens: int
    sps2: Sps2Usage | None = None


class Embeddings(Struct, frozen=True):
    """The answer of `/v1/embeddings`, in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class EmbeddingExtension(Extension, frozen=True, kw_only=True):
    """SPS2's own parameters of an embedding."""

    pooling: Annotated[
        Pooling | None,
        Meta(
            description="the hidden state of the `last` token, the default, or the `mean` of all, "
            "for which nothing cached is used"
        ),
    ] = None


class EmbeddingRequest(Tolerant, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Annotated[
        Prompt, Meta(description="texts, or lists of token ids; one text or list is one input")
    ]
    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="numbers, the default, or 32-bit floats, little-endian, as base64"),
    ] = None
    truncate_prompt_tokens: TruncatePromptTokens = None
    cache_salt: CacheSalt = None
    sps2: Annotated[EmbeddingExtension | None, Meta(description="SPS2's own parameters")] = None
    dimensions: Annotated[int | None, only(why="a vector is as long as the hidden state")] = None
    user: Annotated[str | None, ignored("nothing is kept of who asks")] = None
