"""Shapes of public models, for simulations of models that are not on this machine."""

from pathlib import Path

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, Rope, read
from sps2.common.models import folder_of

Shape = tuple[int, int, int, int, int, int, int]
"""vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, max_context."""

SHAPES: dict[str, Shape] = {
    "smollm2-135m": (49_152, 576, 1_536, 30, 9, 3, 8_192),
    "llama-2-70b": (32_000, 8_192, 28_672, 80, 64, 8, 4_096),
    "llama-3-8b": (128_256, 4_096, 14_336, 32, 32, 8, 8_192),
    "llama-3-70b": (128_256, 8_192, 28_672, 80, 64, 8, 8_192),
    "llama-3-8b-1m": (128_256, 4_096, 14_336, 32, 32, 8, 1_048_576),
    "llama-3-70b-1m": (128_256, 8_192, 28_672, 80, 64, 8, 1_048_576),
    "llama-3.1-8b": (128_256, 4_096, 14_336, 32, 32, 8, 131_072),
    "llama-3.1-70b": (128_256, 8_192, 28_672, 80, 64, 8, 131_072),
    "llama-3.1-405b": (128_256, 16_384, 53_248, 126, 128, 8, 131_072),
    "lwm-7b-1m": (32_000, 4_096, 11_008, 32, 32, 32, 1_048_576),
    "mistral-7b": (32_768, 4_096, 14_336, 32, 32, 8, 32_768),
    "phi-3-14b": (32_064, 5_120, 17_920, 40, 40, 10, 131_072),
    "yi-34b-200k": (64_000, 7_168, 20_480, 60, 56, 8, 200_000),
    "qwen2.5-7b": (152_064, 3_584, 18_944, 28, 28, 4, 32_768),
    "qwen2.5-72b": (152_064, 8_192, 29_568, 80, 64, 8, 32_768),
}
"""As their public config.json files say. mistral-7b is v0.3, which has no sliding window; the `-1m`
ones are published fine-tunings for longer contexts, of the same shape; lwm-7b-1m is LWM-Text-1M."""
HEAD_DIMS = {"smollm2-135m": 64}
HEAD_DIM = 128
TIED = ("smollm2-135m",)


def named(name: str) -> ModelConfig:
    """The shape of a model in `SHAPES`. Raises Invalid, with the names, if it is none."""
    if name not in SHAPES:
        raise Invalid(f"no shape is known by the name {name!r}; known are {', '.join(SHAPES)}")
    vocab, hidden, inner, layers, heads, kv_heads, context = SHAPES[name]
    return ModelConfig(
        family="qwen2" if name.startswith("qwen") else "llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=HEAD_DIMS.get(name, HEAD_DIM),
        max_context=context,
        norm_eps=1e-5,
        rope=Rope(),
        windows=(None,) * layers,
        tied=name in TIED,
        qkv_bias=name.startswith("qwen"),
        dtype="bfloat16",
    )


def shape_of(ref: str) -> ModelConfig:
    """The shape of a pulled model, of a folder or file with a config.json, or of `SHAPES`.

    Raises:
        Invalid: it is none of these; the message lists what is known.
    """
    local = Path(ref).expanduser()
    if local.is_file() and local.name == "config.json":
        return read(local.parent)
    if local.is_dir():
        return read(local)
    if ref in SHAPES:
        return named(ref)
    try:
        pulled = folder_of(ref)
    except Invalid:
        pulled = local
    if (pulled / "config.json").is_file():
        return read(pulled)
    raise Invalid(
        f"the shape of {ref!r} is not known: give a config.json, a folder that has one, a model "
        f"that `spsctl models` lists, or one of {', '.join(SHAPES)}"
    )
