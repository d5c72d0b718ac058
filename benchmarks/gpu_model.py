"""A whole random model in the shape of Llama 3 8B on a GPU: prefill, and steps of decoding.

Beside transformers with the same weights, torch's sdpa and a static cache. Decoding is one CUDA
graph, which is captured once for a batch and a length.
"""

import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import torch
from gpu_stages import Stage
from gpu_timing import DTYPE, Row, milliseconds
from torch import Tensor

from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.tensor_names import shapes
from sps2.kernels import PagedRows, Run, attention, paged_attention
from sps2.kernels.gpu import launches
from sps2.kernels.gpu.graphs import Graphs

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    max_context=64 << 10,
    norm_eps=1e-5,
    rope=Rope(rope_theta=500_000.0),
    windows=(None,) * 32,
)
PAGE = 64
PROMPTS = (2 << 10, 8 << 10, 32 << 10)
STEPS = ((1, 8 << 10), (16, 8 << 10), (64, 2 << 10))
"""Rows of a batch, and keys of each."""


def stages(device: torch.device) -> list[Stage]:
    """A whole model: alone, steps of decoding first; then beside transformers."""
    return [
        Stage("model", "A model of 8B, ms", lambda: _measured(device, beside=False)),
        Stage("peer", "A model of 8B beside transformers", lambda: _measured(device, beside=True)),
    ]


def start(device: torch.device) -> Iterator[Row]:
    """Seconds that the kernels of a shard take at its start: compiled, and then at hand."""
    shape = launches.Model(32, 8, 128, 4096, 14336, DTYPE)
    for when in ("first", "again"):
        count, took_s = launches.launch_all(shape, device)
        yield {"when": when, "launches": count, "s": round(took_s, 2)}


def _measured(device: torch.device, beside: bool) -> Iterator[Row]:
    theirs = _transformers(LLAMA_8B, device) if beside else None
    if beside and theirs is None:
        return
    weights = _random(LLAMA_8B, device) if theirs is None else dict(theirs.state_dict())
    model = Llama(LLAMA_8B, weights)
    if theirs is not None:
        yield agreement(model, theirs, 1000, device)
    for rows, keys in STEPS:
        ours = milliseconds(Graphs(device)(decoding(model, rows, keys, device)))
        other = _decoding(theirs, rows, keys, device)
        yield _beside(f"step of {rows} rows at {keys}", ours, other)
        _free()
    for tokens in PROMPTS:
        ours = milliseconds(prefill(model, tokens, device), 5)
        yield _beside(f"prefill {tokens}", ours, _prefill(theirs, tokens, device))
        _free()


class Paged:
    """Attention over pages: as a prompt, or as one query a row."""

    def __init__(self, pool: PagePool, slots: Tensor, prompt: Run | None, rows: PagedRows) -> None:
        self._pool = pool
        self._slots = slots
        self._prompt = prompt
        self._rows = rows

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._pool.put(layer, self._slots, k, v)
        keys, values = self._pool.layer(layer)
        if self._prompt is None:
            return paged_attention(q, keys, values, self._rows).out.to(q.dtype)
        runs = [self._prompt]
        return attention(q, keys, values, queries=runs, keys=runs).out.to(q.dtype)


def prefill(model: Llama, tokens: int, device: torch.device) -> Callable[[], Tensor]:
    """The last token's logits, of a prompt of random tokens."""
    pool = _pool(model.config, 1, tokens, device)
    at = torch.arange(tokens, device=device)
    ids = torch.randint(0, model.config.vocab_size, (tokens,), device=device)
    attend = Paged(pool, at, Run(0, 0, tokens), PagedRows([], []))
    return lambda: model.logits(_now(model.forward(ids, at, attend))[-1:])


def decoding(model: Llama, rows: int, keys: int, device: torch.device) -> Callable[[], Tensor]:
    """The most likely next tokens of rows with this many keys each, their own included."""
    pool = _pool(model.config, rows, keys, device)
    tokens = -(-keys // PAGE) * PAGE
    at = torch.full((rows,), keys - 1, device=device)
    ids = torch.randint(0, model.config.vocab_size, (rows,), device=device)
    batch = PagedRows([[Run(row * tokens, 0, keys)] for row in range(rows)], [keys - 1] * rows)
    slots = torch.arange(rows, device=device) * tokens + keys - 1
    attend = Paged(pool, slots, None, batch)
    return lambda: model.logits(_now(model.forward(ids, at, attend))).argmax(-1)


def agreement(model: Llama, theirs: Any, tokens: int, device: torch.device) -> Row:
    """How far the logits of every token of a prompt are from those of transformers."""
    ids = torch.randint(0, model.config.vocab_size, (tokens,), device=device)
    at = torch.arange(tokens, device=device)
    pool = _pool(model.config, 1, tokens, device)
    attend = Paged(pool, at, Run(0, 0, tokens), PagedRows([], []))
    ours = model.logits(_now(model.forward(ids, at, attend)))
    with torch.no_grad():
        other = theirs(ids[None]).logits[0].float()
    error = float((ours - other).norm() / other.norm())
    same = float((ours.argmax(-1) == other.argmax(-1)).float().mean())
    return {
        "what": f"logits of {tokens} tokens",
        "relative difference": round(error, 5),
        "same best": round(same, 4),
    }


def _random(config: ModelConfig, device: torch.device) -> dict[str, Tensor]:
    return {
        name: (torch.randn(shape, device=device) * 0.02).to(DTYPE).requires_grad_(False)
        for name, shape in shapes(config).items()
    }


def _transformers(config: ModelConfig, device: torch.device) -> Any:
    """The model of transformers with random weights; None where it is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.rope_theta,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with device:
            theirs = LlamaForCausalLM(shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return theirs


def _prefill(theirs: Any, tokens: int, device: torch.device) -> float | None:
    if theirs is None:
        return None
    from transformers import StaticCache

    ids = torch.randint(0, theirs.config.vocab_size, (1, tokens), device=device)
    cache = StaticCache(config=theirs.config, max_cache_len=tokens)

    def work() -> None:
        cache.reset()
        theirs(ids, past_key_values=cache, logits_to_keep=1)

    with torch.no_grad():
        return milliseconds(work, 5)


def _decoding(theirs: Any, rows: int, keys: int, device: torch.device) -> float | None:
    """Compiled for a static cache, as transformers recommends; None where that fails."""
    if theirs is None:
        return None
    from transformers import StaticCache

    cache = StaticCache(config=theirs.config, max_cache_len=keys)
    step: Any = torch.compile(theirs.forward, mode="reduce-overhead")
    token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    at = torch.tensor([keys - 1], device=device)

    def work() -> None:
        step(token, past_key_values=cache, cache_position=at, position_ids=at[None]).logits.argmax()

    try:
        with torch.no_grad():
            return milliseconds(work)
    except RuntimeError as error:
        print(f"transformers cannot decode {rows} rows at {keys}: {str(error).splitlines()[0]}")
        return None


def _pool(config: ModelConfig, rows: int, keys: int, device: torch.device) -> PagePool:
    return PagePool(config, rows * -(-keys // PAGE), PAGE, DTYPE, device)


def _now(forward: Coroutine[Any, Any, Tensor]) -> Tensor:
    """The result of a forward that waits for nothing."""
    try:
        forward.send(None)
    except StopIteration as done:
        result: Tensor = done.value
        return result
    raise RuntimeError("the forward waited")


def _beside(what: str, ours: float, theirs: float | None) -> Row:
    return {
        "what": what,
        "sps2": round(ours, 3),
        "transformers": theirs and round(theirs, 3),
        "ratio": theirs and round(theirs / ours, 2),
    }


def _free() -> None:
    """Pools of the last measurement are gone before the next."""
    gc.collect()
    torch.cuda.empty_cache()
