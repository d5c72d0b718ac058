"""Public measurements of GPUs, which the efficiencies in `hardware.py` are fitted to."""

from typing import Literal, NamedTuple

from msgspec.structs import replace

from sps2.cli.simulator.hardware import CARDS, Card, Roofline
from sps2.cli.simulator.models import named
from sps2.common.model.config import ModelConfig, Rope

Kind = Literal["product", "attention", "prefill", "step"]
A100, H100, H200 = CARDS["A100-80G"], CARDS["H100-SXM"], CARDS["H200"]
A100_40G = replace(A100, name="A100-40G", memory_gb=40.0, bandwidth_gb=1555.0)

VIDUR = "[Vidur](https://github.com/microsoft/vidur), data/profiling/compute"
DISTSERVE = "fits of [DistServe](https://github.com/LLMServe/DistServe), simdistserve"
SPLITWISE = "[Splitwise](https://github.com/Mutinifni/splitwise-sim), data/perf_model.csv"
META = "[Meta](https://arxiv.org/abs/2411.01783)"
MINFERENCE = "[MInference](https://arxiv.org/abs/2407.02490)"
FLEXPREFILL = "[FlexPrefill](https://arxiv.org/abs/2502.20766)"
VLLM = "[vLLM](https://buildkite.com/vllm/performance-benchmark/builds/9515)"
MUSGRAVE = "[J. Musgrave](https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on), vLLM"


class Point(NamedTuple):
    """A measurement.

    what: `product`: the matrix products of one layer, for `rows` rows. `attention`: of one layer,
        of a prompt of `rows` tokens. `prefill`: of a prompt of `rows` tokens. `step`: a decode
        step of `rows` sequences.
    keys: of all sequences of a step together. degree: groups of `tp` cards that share a prefill.
    is_fitted: whether the efficiencies and the margin are to hold for it; if not, `why` says why.
    """

    source: str
    card: Card
    model: str
    tp: int
    what: Kind
    rows: int
    seconds: float
    keys: int = 0
    degree: int = 1
    is_fitted: bool = True
    why: str = ""

    @property
    def error(self) -> float:
        """By how much the roofline is too slow, as a share of what was measured."""
        return self.predicted_s() / self.seconds - 1

    def predicted_s(self) -> float:
        """The same by the roofline; without SPS2's own launch."""
        shape = _opt(self.model) if self.model.startswith("opt") else named(self.model)
        line = Roofline(shape, self.card, self.tp)
        pairs = self.rows * self.rows / 2
        match self.what:
            case "product":
                return line.products_s(line.layer_weights, self.rows)
            case "attention":
                return line.pair_s * pairs / shape.layers
            case "prefill":
                return line.pass_s(-(-self.rows // self.degree)) + line.pair_s * pairs / self.degree
            case "step":
                return line.step_s(self.rows) + line.key_s * self.keys


def _opt(name: str) -> ModelConfig:
    """OPT has two matrices in its MLP, of 4 times the hidden size: as much as three of 8/3."""
    hidden, layers, heads = {"opt-13b": (5120, 40, 40), "opt-66b": (9216, 64, 72)}[name]
    return ModelConfig(
        family="llama",
        vocab_size=50_272,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=128,
        max_context=2_048,
        norm_eps=1e-5,
        rope=Rope(),
        windows=(None,) * layers,
    )


def _product(card: Card, model: str, tp: int, rows: int, tflops: float) -> Point:
    """From the TFLOP/s of one card."""
    line = Roofline(named(model), card, tp)
    seconds = 2 * rows * line.layer_weights / tp / (tflops * 1e12)
    return Point(VIDUR, card, model, tp, "product", rows, seconds)


def _reading(card: Card, model: str, tp: int, terabytes: float) -> Point:
    """From the TB/s of one card, with one row."""
    line = Roofline(named(model), card, tp)
    seconds = 2 * line.layer_weights / tp / (terabytes * 1e12)
    return Point(VIDUR, card, model, tp, "product", 1, seconds)


OLD = "eager kernels of 2023: the host alone takes 30 to 44 ms a step"

POINTS: tuple[Point, ...] = (
    _reading(A100, "llama-2-70b", 1, 1.60),
    _reading(A100, "llama-2-70b", 8, 1.41),
    _reading(A100, "llama-3-8b", 1, 1.58),
    _reading(A100, "llama-3-8b", 8, 1.11),
    _reading(H100, "llama-2-70b", 1, 2.89),
    _reading(H100, "llama-2-70b", 8, 2.45),
    _product(A100, "llama-2-70b", 1, 128, 169),
    _product(A100, "llama-2-70b", 8, 128, 134),
    _product(A100, "llama-2-70b", 1, 512, 224),
    _product(A100, "llama-2-70b", 8, 512, 188),
    _product(A100, "llama-2-70b", 1, 2048, 238),
    _product(A100, "llama-3-8b", 1, 128, 148),
    _product(A100, "llama-3-8b", 1, 512, 225),
    _product(A100, "llama-3-8b", 1, 2048, 224),
    _product(H100, "llama-2-70b", 1, 128, 358),
    _product(H100, "llama-2-70b", 8, 128, 261),
    _product(H100, "llama-2-70b", 1, 512, 750),
    _product(H100, "llama-2-70b", 8, 512, 598),
    _product(H100, "llama-2-70b", 1, 2048, 720),
    _product(H100, "llama-2-70b", 8, 2048, 724),
    Point(FLEXPREFILL, A100, "llama-3.1-8b", 1, "attention", 131_072, 0.659),
    Point(MINFERENCE, A100, "llama-3-8b-1m", 1, "prefill", 1_000_000, 1800.0),
    Point(META, H100, "llama-3.1-405b", 8, "prefill", 1_000_000, 77.0, degree=16),
    Point(META, H100, "llama-3.1-405b", 8, "prefill", 128_000, 5.85, degree=8),
    Point(META, H100, "llama-3.1-405b", 8, "prefill", 128_000, 3.8, degree=16),
    Point(DISTSERVE, A100, "opt-13b", 1, "prefill", 512, 0.0722),
    Point(DISTSERVE, A100, "opt-13b", 1, "prefill", 2_048, 0.2568),
    Point(DISTSERVE, A100, "opt-66b", 4, "prefill", 512, 0.1089),
    Point(DISTSERVE, A100, "opt-66b", 4, "prefill", 2_048, 0.3734),
    Point(DISTSERVE, A100, "opt-13b", 1, "step", 1, 0.0203, 512),
    Point(DISTSERVE, A100, "opt-13b", 1, "step", 32, 0.0315, 16_384),
    Point(DISTSERVE, A100, "opt-66b", 4, "step", 1, 0.0311, 512),
    Point(DISTSERVE, A100, "opt-66b", 4, "step", 32, 0.0402, 16_384),
    Point(MUSGRAVE, A100_40G, "llama-3.1-8b", 1, "step", 1, 0.0133, 1_088),
    Point(VLLM, H200, "llama-3.1-8b", 1, "step", 8, 0.00651, 768),
    Point(VLLM, H200, "llama-3-70b", 4, "step", 8, 0.01623, 768),
    Point(SPLITWISE, A100, "llama-2-70b", 8, "prefill", 2_048, 0.274, 0, 1, False, OLD),
    Point(SPLITWISE, A100, "llama-2-70b", 8, "prefill", 8_192, 1.550, 0, 1, False, OLD),
    Point(SPLITWISE, H100, "llama-2-70b", 8, "prefill", 2_048, 0.137, 0, 1, False, OLD),
    Point(SPLITWISE, H100, "llama-2-70b", 8, "prefill", 8_192, 0.845, 0, 1, False, OLD),
    Point(SPLITWISE, A100, "llama-2-70b", 8, "step", 1, 0.045, 512, 1, False, OLD),
    Point(SPLITWISE, H100, "llama-2-70b", 8, "step", 1, 0.031, 512, 1, False, OLD),
)
