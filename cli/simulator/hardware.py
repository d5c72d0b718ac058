"""Profiles of GPUs that are not here: data sheets, and how much of them public measurements reach.

The efficiencies are fitted to the measurements in `public_points.py`; docs/profiles.md shows both.
"""

from collections.abc import Callable

import msgspec

from sps2.cli.simulator.profile import Curve, Profile
from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.model.share import share_of

ITEM_BYTES = 2
"""Of a weight, activation, key or value: bfloat16."""
SHARPNESS = 3.0
"""How sharply a matrix product goes over from reading weights to computing: the exponent of the
norm that joins both times. 1 adds them, infinity takes the longer one."""
ROWS = (1, 16, 64, 128, 256, 512, 1024, 2048, 8192, 32768)
"""Points of `Profile.pass_s`."""
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512)
"""Points of `Profile.step_s`."""
LAUNCH_S = 0.005
START_S = 12e-6
"""Least time of a layer's matrix products."""
LAYER_S = 48e-6
"""Of a layer: everything else that a GPU or its host starts."""
NETWORK = 0.72
NETWORK_LATENCY_S = 24e-6
MARGIN = 0.25
"""95 % of the public points are within it; tests/cli/test_hardware.py checks that."""
MEMORY_USED = 0.9
RUNTIME_BYTES = 1.5e9
BLOCK_ROWS = 8192
"""Rows that a shard on a GPU computes at once."""

VIDUR = "https://github.com/microsoft/vidur (data/profiling)"
META = "https://arxiv.org/abs/2411.01783"
FLASH2 = "https://arxiv.org/abs/2307.08691"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU. Shares are of the data sheet's figures, as public measurements reach them.

    tflops: bfloat16, dense. memory_gb, bandwidth_gb: of its memory; the latter per second.
    nvlink_gb: per second, each way, as copies between two GPUs reach it.
    products, attention: share of `tflops` in large matrix products, in attention to long prompts.
    reading, key_reading: share of `bandwidth_gb` when weights are read, when keys and values are.
    reduce_gb, reduce_s: of an all-reduce among the GPUs of a host: bytes of its input by its
        seconds, and its least time.
    price, watts: an example of what it costs in an hour, in US dollars, and what it may draw.
    sources: of these figures, by field.
    """

    name: str
    tflops: float
    memory_gb: float
    bandwidth_gb: float
    nvlink_gb: float
    products: float
    attention: float
    reading: float
    key_reading: float
    reduce_gb: float
    reduce_s: float
    price: float
    watts: float
    sources: dict[str, str]


_SHARED = {
    "key_reading": "flash-decoding kernels read keys at 75 to 85 % of the bandwidth: assumed",
    "price": "an example: offers vary by a factor of three; give your own",
}
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_HOPPER = {
    "products": f"{VIDUR}: 700 to 763 TFLOP/s at 2,048 to 4,096 rows, on an H100",
    "attention": f"{META}: 1M tokens in 77 s on 128 H100, mostly attention",
    "reading": f"{VIDUR}: 2.45 to 2.89 TB/s on an H100",
    "nvlink_gb": f"{VIDUR}: 305 to 348 GB/s between two H100",
    "reduce_gb": f"{VIDUR}: 64 MiB among 8 H100 in 0.322 ms",
    "reduce_s": f"{VIDUR}: 2 KiB in 38 us; engines use faster kernels for small ones: fitted",
}

CARDS = {
    card.name: card
    for card in (
        Card(
            name="A100-80G",
            tflops=312.0,
            memory_gb=80.0,
            bandwidth_gb=2039.0,
            nvlink_gb=233.0,
            products=0.74,
            attention=0.58,
            reading=0.77,
            key_reading=0.75,
            reduce_gb=99.0,
            reduce_s=25e-6,
            price=1.5,
            watts=400.0,
            sources={
                "tflops": _A100,
                "memory_gb": _A100,
                "bandwidth_gb": _A100,
                "watts": _A100,
                "nvlink_gb": f"{VIDUR}: 228 to 238 GB/s between two A100",
                "products": f"{VIDUR}: 219 to 240 TFLOP/s at 2,048 to 4,096 rows",
                "attention": f"{FLASH2}: 50 to 73 % of the peak; fitted to two prefills",
                "reading": f"{VIDUR}: 1.41 to 1.60 TB/s",
                "reduce_gb": f"{VIDUR}: 64 MiB among 8 A100 in 0.675 ms",
                "reduce_s": f"{VIDUR}: 2 KiB in 62 us; engines use faster kernels: fitted",
                **_SHARED,
            },
        ),
        Card(
            name="H100-SXM",
            tflops=989.0,
            memory_gb=80.0,
            bandwidth_gb=3350.0,
            nvlink_gb=327.0,
            products=0.72,
            attention=0.5,
            reading=0.83,
            key_reading=0.75,
            reduce_gb=208.0,
            reduce_s=20e-6,
            price=2.5,
            watts=700.0,
            sources={
                "tflops": _H100,
                "memory_gb": _H100,
                "bandwidth_gb": _H100,
                "watts": _H100,
                **_HOPPER,
                **_SHARED,
            },
        ),
        Card(
            name="H200",
            tflops=989.0,
            memory_gb=141.0,
            bandwidth_gb=4800.0,
            nvlink_gb=327.0,
            products=0.72,
            attention=0.5,
            reading=0.83,
            key_reading=0.75,
            reduce_gb=208.0,
            reduce_s=20e-6,
            price=3.5,
            watts=700.0,
            sources={
                "tflops": _H200,
                "memory_gb": _H200,
                "bandwidth_gb": _H200,
                "watts": _H200,
                **_HOPPER,
                **_SHARED,
            },
        ),
    )
}
"""By name."""


def card_of(name: str) -> Card:
    """The card of a name; capitals do not matter. Raises Invalid, with the list, if it is none."""
    wanted = name.casefold()
    found = [card for each, card in CARDS.items() if each.casefold() == wanted]
    if not found:
        raise Invalid(
            f"no card is known by the name {name!r}; known are {', '.join(CARDS)}. A measured "
            "profile (`spsctl profile`) needs none"
        )
    return found[0]


class Roofline:
    """What a model's layers take on shards of `tp` cards: the longer of reading and computing.

    Raises:
        Invalid: the model cannot be split into `tp` equal parts.
    """

    def __init__(self, model: ModelConfig, card: Card, tp: int = 1) -> None:
        share_of(model, tp)
        heads, dim = model.heads, model.head_dim
        self.layer_weights = model.hidden_size * (
            dim * (2 * heads + 2 * model.kv_heads) + 3 * model.intermediate_size
        )
        """Of one layer."""
        self.head_weights = model.vocab_size * model.hidden_size
        self._model, self._card, self._tp = model, card, tp
        self._flops = card.tflops * 1e12 * tp
        self._bandwidth = card.bandwidth_gb * 1e9 * tp

    def products_s(self, weights: int, rows: int) -> float:
        """A matrix product of `rows` rows."""
        reading = weights * ITEM_BYTES / (self._bandwidth * self._card.reading)
        computing = 2 * rows * weights / (self._flops * self._card.products)
        both = (reading**SHARPNESS + computing**SHARPNESS) ** (1 / SHARPNESS)
        return START_S + float(both)

    def reductions_s(self, rows: int) -> float:
        """The two all-reduces of a layer."""
        if self._tp == 1:
            return 0.0
        nbytes = rows * self._model.hidden_size * ITEM_BYTES
        return 2 * (self._card.reduce_s + nbytes / (self._card.reduce_gb * 1e9))

    def layers_s(self, rows: int) -> float:
        """All layers, without attention to keys."""
        one = self.products_s(self.layer_weights, rows) + self.reductions_s(rows) + LAYER_S
        return self._model.layers * one

    def pass_s(self, rows: int) -> float:
        """A prefill's pass: all layers, and the logits of one row."""
        return self.layers_s(rows) + self.products_s(self.head_weights, 1)

    def step_s(self, sequences: int) -> float:
        """A decode step."""
        return self.layers_s(sequences) + self.products_s(self.head_weights, sequences)

    @property
    def pair_s(self) -> float:
        model = self._model
        flops = 4 * model.heads * model.head_dim * model.layers
        return flops / (self._flops * self._card.attention)

    @property
    def key_s(self) -> float:
        return self._model.kv_bytes(ITEM_BYTES) / (self._bandwidth * self._card.key_reading)


def roofline(
    model: ModelConfig,
    card: Card | str,
    tp: int = 1,
    link_gbit: float | None = None,
    name: str = "",
) -> Profile:
    """A profile of shards that nobody measured.

    Args:
        tp: cards of one shard.
        link_gbit: nominal Gbit/s of the network that each card has for itself, each way; None:
            shards reach each other over NVLink.
        name: of the model, for people.

    Raises:
        Invalid: the card is not known, or the model cannot be split into `tp` equal parts.
    """
    card = card_of(card) if isinstance(card, str) else card
    line = Roofline(model, card, tp)
    if link_gbit is None:
        link, latency_s = card.nvlink_gb * 8, 8e-6
        where = card.sources["nvlink_gb"]
    else:
        link, latency_s = link_gbit * NETWORK, NETWORK_LATENCY_S
        where = f"{VIDUR}: 35.9 GB/s over 400 Gbit/s between hosts, 72 %; 2 KiB in 17 to 24 us"
    waits_s = 2 * model.layers * latency_s
    label = f"roofline, +- {MARGIN:.0%}"
    shape = name or f"{model.layers} layers of {model.hidden_size}"
    return Profile(
        name=f"{shape} on {tp} x {card.name} ({label})",
        model=shape,
        machine=f"{tp} x {card.name}" if tp > 1 else card.name,
        is_measured=False,
        margin=MARGIN,
        launch_s=LAUNCH_S,
        pass_s=_curve(ROWS, line.pass_s),
        pair_s=line.pair_s,
        share_s=waits_s,
        step_s=_curve(BATCHES, line.step_s),
        key_s=line.key_s,
        remote_s=waits_s,
        link_gbit=link * tp,
        link_latency_s=latency_s,
        sources={
            "launch_s": "SPS2's own services need 5 to 10 ms on slow cores: assumed",
            "pass_s": f"data sheet; {card.sources['products']}; {card.sources['reading']}; "
            f"{card.sources['reduce_gb']}; {(START_S + LAYER_S) * 1e6:.0f} us a layer for starting "
            "kernels: fitted",
            "pair_s": card.sources["attention"],
            "step_s": f"as pass_s; {card.sources['reduce_s']}",
            "key_s": card.sources["key_reading"],
            "share_s": "two waits a layer of link_latency_s",
            "remote_s": "two waits a layer of link_latency_s",
            "link_gbit": where,
            "link_latency_s": where if link_gbit else f"{VIDUR}: 2 KiB in 5 to 8 us in a host",
        },
    )


def _curve(counts: tuple[int, ...], seconds: Callable[[int], float]) -> Curve:
    return tuple((count, seconds(count)) for count in counts)


def weight_bytes(model: ModelConfig, tp: int = 1) -> float:
    """Bytes of the weights on one of a shard's cards."""
    line = Roofline(model, CARDS["H100-SXM"], tp)
    embedding = model.vocab_size * model.hidden_size  # whole on each card
    head = 0.0 if model.tied else line.head_weights / tp
    return ITEM_BYTES * (model.layers * line.layer_weights / tp + embedding + head)


def pages(
    model: ModelConfig, card: Card | str, page_tokens: int = 32, tp: int = 1, kv_bytes: int = 0
) -> int:
    """How many pages of KV a shard of `tp` cards keeps.

    Of each card's memory 10 % stay free, as in other engines; then weights, a block of activations
    and the runtime have their part, and KV the rest.

    Args:
        kv_bytes: of one token; 0: keys and values in bfloat16.

    Raises:
        Invalid: the weights do not fit; the message names a `tp` with which they do.
    """
    card = card_of(card) if isinstance(card, str) else card
    room = _room(model, card, tp)
    of_page = page_tokens * (kv_bytes or model.kv_bytes(ITEM_BYTES)) / tp
    if room >= of_page:
        return int(room / of_page)
    enough = [
        each
        for each in range(tp + 1, model.kv_heads + 1)
        if not (model.heads % each or model.kv_heads % each or model.intermediate_size % each)
        and _room(model, card, each) > 0
    ]
    advice = f"take tp {enough[0]}" if enough else "take a card with more memory"
    raise Invalid(
        f"the model needs {weight_bytes(model, tp) / 1e9:.0f} GB for its weights on each of {tp} x "
        f"{card.name}, which has {card.memory_gb:.0f} GB: {advice}"
    )


def _room(model: ModelConfig, card: Card, tp: int) -> float:
    activations = (
        BLOCK_ROWS
        * ITEM_BYTES
        * (
            4 * model.hidden_size
            + (3 * model.intermediate_size + 2 * model.heads * model.head_dim) / tp
        )
    )
    used = weight_bytes(model, tp) + activations + RUNTIME_BYTES
    return card.memory_gb * 1e9 * MEMORY_USED - used
