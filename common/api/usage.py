"""The usage object of the public API."""

from typing import Annotated

from msgspec import Meta

from sps2.common.messages import Method, Setting, Struct
from sps2.common.spans import Span

Bytes = int | None
"""Null where a stop string ended an answer before the cluster had reported its totals."""
METHODS = "`gather`, `ring`, `ulysses`, `usp`, `pass_q` or `csa`"


class Part(Struct, frozen=True):
    """A span of the prompt, and the shard that holds its KV."""

    shard: Annotated[str, Meta(description="name of the shard, as `spsctl status` shows it")]
    span: Annotated[
        Span, Meta(description="positions of tokens, from `start` up to but without `stop`")
    ]


class Sps2Usage(Struct, frozen=True):
    """How a request was served. Bytes are summed over choices; places are the first choice's."""

    sp_degree: Annotated[
        int, Meta(description="prefill shards that shared the prompt; of several choices, the most")
    ]
    chunks: Annotated[
        int,
        Meta(
            description="in how many parts the prompts were computed, one after another, summed "
            "over choices; more than one each only with `scheduler.chunk_tokens`"
        ),
    ]
    attention: Annotated[
        Setting,
        Meta(description="as requested, or the cluster's; `method` shows whether it had effect"),
    ]
    method: Annotated[
        Method,
        Meta(
            description="how the shards shared attention. `balanced` and `fast` take `csa`, or "
            "`gather` where CSA can gain nothing: up to 4096 tokens to compute, one shard, or "
            "spans too short. Then nothing is left out; keys and values that travel do so in 8 "
            "bits, unless `kv_transfer_dtype` says otherwise",
            extra={"form": METHODS},
        ),
    ]
    prefill_bytes: Annotated[
        Bytes,
        Meta(
            description="`exchange_bytes` and `deposit_bytes`. This and the other bytes that may "
            "be null are null where a stop string ended an answer before its totals were known"
        ),
    ]
    decode_bytes: Annotated[Bytes, Meta(description="`q_bytes` and `state_bytes`")]
    kv_bytes_exact: Annotated[
        int, Meta(description="size of the keys and values of the prompts, to compare with")
    ]
    kept_fraction: Annotated[
        float,
        Meta(
            description="share of the blocks of keys and values that CSA moved; 1 for the other "
            "methods"
        ),
    ]
    lost_mass: Annotated[
        float,
        Meta(
            description="mean share of attention that the dropped blocks would have had, as probes "
            "measured it; 0 for the other methods"
        ),
    ]
    ttft_ms: Annotated[
        float, Meta(description="ms from the request to its first token, at the gateway")
    ]
    cached_tokens: Annotated[
        int, Meta(description="tokens of the prompts whose KV was cached, summed over choices")
    ]
    exchange_bytes: Annotated[
        int, Meta(description="bytes between prefill shards, and with shards that have cached KV")
    ]
    exchange_bytes_by_purpose: Annotated[
        dict[str, int],
        Meta(
            description="the same as `kv`, `q`, `state` and `probe`; for cached KV `prefix_q` and "
            "`prefix_state`"
        ),
    ]
    predicted_exchange_bytes: Annotated[
        int,
        Meta(
            description="the same by formula, before the prefill; for CSA by the share of blocks "
            "that is expected"
        ),
    ]
    prefill_s: Annotated[float, Meta(description="seconds of prefill of the slowest shard")]
    compute_s: Annotated[
        float, Meta(description="seconds in which a shard computed, summed over shards")
    ]
    attention_s: Annotated[float, Meta(description="of these, for attention")]
    exchange_s: Annotated[
        float,
        Meta(
            description="seconds in which a transfer was under way or awaited, summed over shards"
        ),
    ]
    hidden_fraction: Annotated[
        float, Meta(description="share of `exchange_s` in which the same shard computed")
    ]
    deposit_bytes: Annotated[
        Bytes, Meta(description="bytes of keys and values from prefill to decode shards")
    ]
    saved_bytes: Annotated[
        Bytes,
        Meta(
            description="bytes that lossless packing saved: `prefill_bytes` would be larger by them"
        ),
    ]
    q_bytes: Annotated[
        Bytes, Meta(description="bytes of queries, from the owner to the other shards with KV")
    ]
    state_bytes: Annotated[Bytes, Meta(description="bytes of partial attention that came back")]
    migration_pays_after: Annotated[
        int | None,
        Meta(
            description="length of an answer, in tokens, from which on moving all KV to the owner "
            "would have needed fewer bytes; null where the owner has it all"
        ),
    ]
    owner: Annotated[str, Meta(description="the shard that computed the answer")]
    placements: Annotated[
        tuple[Part, ...], Meta(description="which shards had the KV of the prompt")
    ]
    epoch: Annotated[
        int,
        Meta(
            description="0; more after the request was planned again, as after the loss of a shard"
        ),
    ]


class PromptTokensDetails(Struct, frozen=True):
    """More about `prompt_tokens`."""

    cached_tokens: Annotated[
        int, Meta(description="tokens whose KV was cached when a prompt's first choice was planned")
    ] = 0


class Usage(Struct, frozen=True):
    """OpenAI's usage object, and what SPS2 adds."""

    prompt_tokens: Annotated[int, Meta(description="each prompt counts once, whatever `n` is")]
    completion_tokens: Annotated[
        int, Meta(description="of all choices, with the tokens that ended them")
    ]
    total_tokens: Annotated[int, Meta(description="the sum of both")]
    prompt_tokens_details: Annotated[
        PromptTokensDetails,
        Meta(
            description="`cached_tokens`: of each prompt's first choice, those whose KV was cached"
        ),
    ] = PromptTokensDetails()
    sps2: Annotated[
        Sps2Usage | None,
        Meta(description="SPS2's figures, below; null in chunks that have the usage so far"),
    ] = None
