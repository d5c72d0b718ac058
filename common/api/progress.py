"""The progress of a prefill, as the public API reports it."""

from typing import Annotated

from msgspec import Meta

from sps2.common.messages import Struct


class PrefillProgress(Struct, frozen=True):
    """Progress of a request's prompts in tokens, each prompt as often as it is computed.

    Tokens in work count by layers: after half of the layers each counts as half a token.
    """

    processed: Annotated[int, Meta(description="tokens computed, with `cached`")]
    total: Annotated[
        int, Meta(description="tokens of all prompts, each as often as it is computed")
    ]
    cached: Annotated[int, Meta(description="tokens whose KV was cached")]
    eta_ms: Annotated[
        float | None,
        Meta(description="ms until the first token; null while that is not known"),
    ] = None


class ChunkExtension(Struct, frozen=True):
    """SPS2's addition to OpenAI's chunks, in chunks without choices."""

    progress: Annotated[
        PrefillProgress, Meta(description="how far the prefill is, with `sps2.progress`")
    ]
