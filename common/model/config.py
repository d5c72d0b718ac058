"""The model configuration of config.json, alike for all supported families; imports no torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sps2.common.errors import Invalid

RopeKind = Literal["default", "linear", "llama3", "yarn"]

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Supported `architectures` and their `model_type`."""

Checked = TypeVar("Checked")

MOST_LAYERS = 1024

DTYPES = ("bfloat16", "float16", "float32")

BLOCKS = "sps2-blocks"
"""The `quant_method` of weights in blocks, as a GGUF file is converted to."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding parameters, named and defaulted as transformers' `rope_parameters`."""

    rope_type: RopeKind = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama-family model. `windows` has one entry per layer; None: no window."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int
    """Tokens of prompt and answer together: `max_position_embeddings`, or the trained context
    times YaRN's factor, if that is more."""
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str | None = None
    """The checkpoint's dtype, if config.json has it."""
    eos_ids: tuple[int, ...] = ()

    def window(self, layer: int) -> int | None:
        """How many keys a query of `layer` sees, its own included; None: all up to its own."""
        return self.windows[layer]

    @property
    def products(self) -> int:
        """Multiplications of all layers' matrix products, for one token."""
        own = self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 3 * self.intermediate_size
        return self.hidden_size * own * self.layers

    @property
    def scale(self) -> float:
        """The factor of attention scores."""
        return float(self.head_dim**-0.5)

    def context_within(self, limit: int) -> int:
        """Tokens of prompt and answer together: `limit`, or the model's maximum if that is 0.
        Raises Invalid if `limit` is over the model's maximum."""
        if limit > self.max_context:
            raise Invalid(f"max_context {limit} is over the model's {self.max_context}")
        return limit or self.max_context

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


def read(folder: Path) -> ModelConfig:
    """Read the configuration in `folder`/config.json.

    Raises:
        Invalid: the file is missing or broken, or names something unsupported.
    """
    path = folder / "config.json"
    table = read_json(path)
    try:
        return _parse(table, path)
    except KeyError as error:
        raise Invalid(f"{path} lacks {error.args[0]!r}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Invalid(f"{path} is not a usable model configuration: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises Invalid, which names the file."""
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise Invalid(f"{path} is not a JSON object")
    return table


def block_types(folder: Path) -> dict[str, str]:
    """The tensors that `folder` has in blocks, with the names of their forms.

    Raises:
        Invalid: config.json is missing or broken.
    """
    path = folder / "config.json"
    given = read_json(path).get("quantization_config") or {}
    if not isinstance(given, dict) or given.get("quant_method") != BLOCKS:
        return {}
    types = given.get("types")
    if not isinstance(types, dict) or not all(isinstance(each, str) for each in types.values()):
        raise Invalid(f"{path}: quantization_config has no types of {BLOCKS}")
    return types


def stored_as(folder: Path, config: ModelConfig) -> str:
    """What most weights in `folder` are stored as: a form of blocks, or a dtype."""
    types = list(block_types(folder).values())
    return max(types, key=types.count) if types else config.dtype or "float32"


def _parse(table: dict[str, Any], path: Path) -> ModelConfig:
    family = _family(table, path)
    _refuse_quantised(table, path)
    _refuse_activation(table, path)
    heads = table["num_attention_heads"]
    default_head_dim = 128 if family == "qwen3" else table["hidden_size"] // heads
    bias = bool(table.get("attention_bias", False)) and family in ("llama", "qwen3")
    rope = _rope(table, path)
    context = table["max_position_embeddings"]
    if rope.rope_type == "yarn":
        context = max(context, int(rope.original_max_position_embeddings * rope.factor))
    fields = {
        "family": family,
        "vocab_size": table["vocab_size"],
        "hidden_size": table["hidden_size"],
        "intermediate_size": table["intermediate_size"],
        "layers": table["num_hidden_layers"],
        "heads": heads,
        "kv_heads": table.get("num_key_value_heads") or heads,
        "head_dim": table.get("head_dim") or default_head_dim,
        "max_context": context,
        "norm_eps": table.get("rms_norm_eps", 1e-6),
        "rope": asdict(rope),
        "windows": _windows(table, family),
        "tied": table.get("tie_word_embeddings", False),
        "qkv_bias": bias or family == "qwen2",
        "output_bias": bias,
        "mlp_bias": table.get("mlp_bias", False) if family == "llama" else False,
        "qk_norm": family == "qwen3",
        "dtype": _dtype(table, path),
        "eos_ids": eos_ids(table, path),
    }
    config = _checked(fields, ModelConfig)
    sizes = (config.hidden_size, config.layers, config.heads, config.head_dim, config.max_context)
    if min(sizes) < 1 or config.heads % config.kv_heads or config.head_dim % 2:
        raise ValueError("sizes must be positive, heads a multiple of KV heads, head_dim even")
    return config


def _family(table: dict[str, Any], path: Path) -> str:
    names = table.get("architectures") or []
    known = [FAMILIES[name] for name in names if name in FAMILIES]
    if known:
        return known[0]
    if not names and table.get("model_type") in FAMILIES.values():
        return str(table["model_type"])
    what = ", ".join(map(str, names)) or f"model_type {table.get('model_type')!r}"
    raise Invalid(f"{path}: {what} is not supported; supported are {', '.join(FAMILIES)}")


def _refuse_quantised(table: dict[str, Any], path: Path) -> None:
    if table.get("quantization_config"):
        given = table["quantization_config"]
        kind = given.get("quant_method", "unknown") if isinstance(given, dict) else given
        if kind == BLOCKS:
            return
        raise Invalid(
            f"{path}: quantised weights ({kind}) are not supported; take the model in "
            f"{', '.join(DTYPES)}, or a .gguf file (`spsctl pull`)"
        )


def _refuse_activation(table: dict[str, Any], path: Path) -> None:
    activation = table.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise Invalid(f"{path}: hidden_act {activation!r} is not supported; supported is silu")


def _rope(table: dict[str, Any], path: Path) -> Rope:
    """Accepts `rope_parameters` (transformers 5) and `rope_scaling` with `rope_theta` (4)."""
    given = dict(table.get("rope_scaling") or table.get("rope_parameters") or {})
    kind = given.pop("type", "default")
    kind = given.setdefault("rope_type", kind)
    if kind not in get_args(RopeKind):
        supported = ", ".join(get_args(RopeKind))
        raise Invalid(f"{path}: rope type {kind!r} is not supported; supported are {supported}")
    if (given.pop("partial_rotary_factor", None) or table.get("partial_rotary_factor") or 1) != 1:
        raise Invalid(f"{path}: partial_rotary_factor other than 1 is not supported")
    given.setdefault("rope_theta", table.get("rope_theta") or 10_000.0)

    context = table["max_position_embeddings"]
    trained = table.get("original_max_position_embeddings")
    trained = trained or given.get("original_max_position_embeddings") or context
    given["original_max_position_embeddings"] = trained
    if kind != "default" and given.get("factor") is None:
        if kind != "yarn":
            raise KeyError(f"{kind} rope scaling: factor")
        given["factor"] = context / trained
    if kind == "llama3":
        given |= {name: given[name] for name in ("low_freq_factor", "high_freq_factor")}
    known = {name: value for name, value in given.items() if value is not None}
    return _checked(known, Rope)


def _windows(table: dict[str, Any], family: str) -> list[int | None]:
    layers = table["num_hidden_layers"]
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers are more than any model has")
    window = table.get("sliding_window")
    if family == "mistral":
        return [table.get("sliding_window", 4096)] * layers
    if family == "llama" or not table.get("use_sliding_window") or window is None:
        return [None] * layers
    kinds = table.get("layer_types")
    if kinds is None:
        first = table.get("max_window_layers", 28)
        return [window if layer >= first else None for layer in range(layers)]
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries for {layers} layers")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _dtype(table: dict[str, Any], path: Path) -> str | None:
    name = table.get("dtype") or table.get("torch_dtype")
    if name is None:
        return None
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise Invalid(f"{path}: dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")
    return name


def eos_ids(table: dict[str, Any], path: Path) -> tuple[int, ...]:
    """The ids in `eos_token_id` of the file at `path`: a number, a list of numbers, or absent.

    Raises:
        Invalid: it is anything else.
    """
    given = table.get("eos_token_id")
    if given is None:
        return ()
    ids = given if isinstance(given, list) else [given]
    if not all(isinstance(each, int) and each >= 0 for each in ids):
        raise Invalid(f"{path}: eos_token_id must be a token id, or a list of them, not {given!r}")
    return tuple(ids)


def _checked(fields: dict[str, Any], kind: type[Checked]) -> Checked:
    """The fields converted to `kind`, with its types checked. Raises ValueError."""
    import msgspec  # only needed to read: models run without it

    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
