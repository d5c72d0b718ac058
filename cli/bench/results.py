"""What `spsctl bench quality` found, as it is written to JSON; imports no torch."""

import msgspec


class Quality(msgspec.Struct, frozen=True):
    """Means over tokens. Standard errors are of paired differences, tokens taken as independent.

    perplexity_change: relative to exact attention's; 0.01 is 1 % worse.
    kl: KL(exact || setting) of next-token distributions, in nats.
    agreement: share of positions where both find the same token most likely.
    """

    tokens: int
    exact_perplexity: float
    perplexity_change: float
    perplexity_change_se: float
    kl: float
    kl_se: float
    agreement: float


class Found(msgspec.Struct, frozen=True):
    """Digits of one needle: all, those that exact attention gets right, those kept of these."""

    depth: float
    digits: int
    exact: int
    kept: int


class Traffic(msgspec.Struct, frozen=True):
    """What the ranks sent each other, in bytes, as if the model were in bfloat16.

    sent: by purpose. causal: if every earlier token's keys and values went once to each later
    rank, in bfloat16. ring: what ring attention sends, in bfloat16.
    """

    sent: dict[str, int]
    causal: int
    ring: int

    @property
    def total(self) -> int:
        return sum(self.sent.values())


class Measured(msgspec.Struct, frozen=True):
    """One setting on one prompt, or on all documents of a length if `document` is empty.

    whole, last: over the last 75 % of the document's tokens, and the last 25 %.
    spans: tokens of each rank.
    blocks, kept_blocks: that CSA could have moved, and moved.
    lost: the mean mass that CSA's held-out probes lost, over the ranks but the first; 0 for others.
    attention_s: seconds of processor time in attention, all ranks together; exact: of one rank.
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
    """Everything. `pooled` are means over the tokens of all documents, and sums of the rest."""

    version: str
    model: str
    dtype: str
    documents: tuple[str, ...]
    cases: tuple[Measured, ...]
    pooled: tuple[Measured, ...]
