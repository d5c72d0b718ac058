"""What an answer took: the usage object of the public API."""

from sps2.common.messages import Method, Setting, Struct
from sps2.common.spans import Span


class Part(Struct, frozen=True):
    """`span` of the request's KV lies on shard `shard`."""

    shard: str
    span: Span


class Sps2Usage(Struct, frozen=True):
    """What really happened. Of several choices bytes are summed, and the places are the first's."""

    sp_degree: int
    attention: Setting
    method: Method
    prefill_bytes: int | None
    """`exchange_bytes` + `deposit_bytes`; like these of decoding, null where a stop string ended a
    request before the cluster told."""
    decode_bytes: int | None
    """`q_bytes` + `state_bytes`; null where a stop string ended a request before its owner told."""
    kv_bytes_exact: int
    """KV of the prompts."""
    kept_fraction: float
    """Of the blocks of keys and values that CSA could have moved; 1 for the other methods."""
    lost_mass: float
    """Mean attention that the dropped blocks would have had, as held-out probes saw it."""
    ttft_ms: float
    cached_tokens: int
    """Of the prompts' tokens, those whose KV was cached; of several choices, summed."""
    exchange_bytes: int
    """Between prefill shards, and with those that have the cached KV."""
    exchange_bytes_by_purpose: dict[str, int]
    predicted_exchange_bytes: int
    """By the formulas, before it ran; for CSA from the share of blocks that is expected."""
    prefill_s: float
    """Of the slowest shard; the following are sums over shards."""
    compute_s: float
    attention_s: float
    exchange_s: float
    """While a transfer was awaited or under way."""
    hidden_fraction: float
    """Of `exchange_s`, while the same shard computed."""
    deposit_bytes: int | None
    q_bytes: int | None
    state_bytes: int | None
    migration_pays_after: int | None
    """Tokens of answer from which on it would have moved fewer bytes to bring all KV to the owner
    than to send q to its holders; null where the owner has it all."""
    owner: str
    placements: tuple[Part, ...]
    epoch: int


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int = 0
    """Whose KV was cached when a prompt's first choice was planned."""


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    sps2: Sps2Usage | None = None
