"""How far a prefill is, as the public API tells it."""

from sps2.common.messages import Struct


class PrefillProgress(Struct, frozen=True):
    """Of all prompts of a request, each as often as it is computed, in tokens.

    Work that is under way counts by layers: half of them make half a token of each.
    """

    processed: int
    """Of `total`; `cached` ones included."""
    total: int
    cached: int
    eta_ms: float | None = None
    """Until the first token; null while there is no telling."""


class ChunkExtension(Struct, frozen=True):
    """What SPS2 tells beyond OpenAI's chunks, in chunks without choices."""

    progress: PrefillProgress
