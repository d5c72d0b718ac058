"""The results of `spsctl bench quality`, as it writes them to JSON; imports no torch."""

import msgspec


class Quality(msgspec.Struct, frozen=True):
    """Means over tokens. Standard errors are of paired differences of independent tokens.

    perplexity_change: relative to exact attention's; 0.01 is 1 % worse.
    kl: KL(exact || setting) of next-token distributions, in nats.
    agreement: share of positions where both have the same most likely token.
    """

    tokens: int
    exact_perplexity: float
    perplexity_change: float
    perplexity_change_se: float
    kl: float
    kl_se: float
    agreement: float


class Found(msgspec.Struct, frozen=True):
    """Digits of one needle: all; correct with exact attention; and of these still correct."""

    depth: float
    digits: int
    exact: int
    kept: int


class Traffic(msgspec.Struct, frozen=True):
    """Bytes between the ranks, as if the model were in bfloat16.

    sent: by purpose. causal: with every earlier token's KV sent once to each later rank, in
    bfloat16. ring: with ring attention, in bfloat16.
    """

    sent: dict[str, int]
    causal: int
    ring: int

    @property
    def total(self) -> int:
        return sum(self.sent.values())


class Measured(msgspec.Struct, frozen=True):
    """A setting's results on one prompt, or on all documents of a length if `document` is empty.

    whole, last: quality over the last 75 % of the document's tokens, and the last 25 %.
    spans: tokens of each rank.
    blocks, kept_blocks: blocks that CSA could have moved, and that it moved.
    lost: mean mass that CSA's held-out probes lost, over all ranks but the first; else 0.
    attention_s: seconds of processor time in attention, all ranks; exact_attention_s: one rank.
    """

    setting: str
    tokens: int
    ranks: int
    document: str
    whole: Quality
    last: Quality
    traffic: Traffic
    spans: tuple[int, ...] = ()
    blocks: int = 0
    kept_blocks: int = 0
    lost: float = 0.0
    attention_s: float = 0.0
    exact_attention_s: float = 0.0
    needles: tuple[Found, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """All results. `pooled` has means over the tokens of all documents, and sums of the rest."""

    version: str
    model: str
    dtype: str
    documents: tuple[str, ...]
    cases: tuple[Measured, ...]
    pooled: tuple[Measured, ...]
