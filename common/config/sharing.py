"""How prefill shards share a prompt: a section of the configuration."""

from typing import Annotated, Literal

from msgspec import Meta

from sps2.common.config.sections import Section

Measured = Literal["measured"]


class Sharing(Section, frozen=True):
    """How prefill shards share one prompt's attention."""

    method: Annotated[
        Literal["auto", "ring", "gather", "ulysses", "usp", "pass_q"],
        Meta(description="of exact attention; auto predicts which is the fastest"),
    ] = "auto"
    kv_transfer_dtype: Annotated[
        Literal["auto", "int8"],
        Meta(
            description="type of keys and values between prefill shards, for exact attention; "
            "auto: the model's"
        ),
    ] = "auto"
    lossless: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="bfloat16 tensors of a prefill are packed losslessly on their way, to two "
            "thirds of the bytes; auto: on links below 1 Gbit/s, if a shard packs fast enough to "
            "gain"
        ),
    ] = "auto"
    pipelined: Annotated[
        bool, Meta(description="transfers beside arithmetic; false is there to be compared with")
    ] = True
    link_gbit: Annotated[
        Annotated[float, Meta(gt=0)] | Measured,
        Meta(
            description="Gbit/s of a shard's link, each way, for predictions; `measured`: by "
            "small probes, and by what prefills move"
        ),
    ] = "measured"
    link_latency_s: Annotated[
        Annotated[float, Meta(ge=0)] | Measured,
        Meta(description="seconds from shard to shard, for predictions; `measured`: by probes"),
    ] = "measured"
    gflops: Annotated[
        Annotated[float, Meta(gt=0)] | Measured,
        Meta(
            description="GFLOP/s of the fastest shard's matrix products, for predictions; "
            "`measured`: each shard measures its own when it starts and now and then, and "
            "prefills correct that"
        ),
    ] = "measured"
    attention_rate: Annotated[
        float, Meta(gt=0, description="speed of attention against that, for predictions")
    ] = 0.75
