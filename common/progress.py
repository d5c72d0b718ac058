"""How far a prefill is, as the public API tells it."""

from sps2.common.messages import Struct


class PrefillProgress(Struct, frozen=True):
    """Of all prompts of a request, each as often as it is computed, in tokens.

    A layer of n tokens counts as one of n's tokens where the model has n layers.
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
