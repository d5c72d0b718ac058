"""How far a prefill is, as the public API tells it."""

from typing import Annotated

from msgspec import Meta

from sps2.common.messages import Struct


class PrefillProgress(Struct, frozen=True):
    """Of all prompts of a request, each as often as it is computed, in tokens.

    Work that is under way counts by layers: half of them make half a token of each.
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
    """What SPS2 tells beyond OpenAI's chunks, in chunks without choices."""

    progress: Annotated[
        PrefillProgress, Meta(description="how far the prefill is, with `sps2.progress`")
    ]
