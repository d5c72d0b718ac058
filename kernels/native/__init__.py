"""The C++ kernels for CPUs: attention near the machine's peak.

Built where there is a compiler for x86-64 (setuptools, optional); loaded by ctypes, so that one
build serves every version of Python and torch. Which instructions are used is found out at run
time. Callers ask `serves` first, and use torch where it says no.
"""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from sps2.kernels.relay import Plan
from sps2.kernels.state import Run, Scales, State

FUNCTIONS = (
    *("attend", "score", "decode", "pack", "unpack"),
    *("layer", "product", "restore", "swiglu", "add_norm", "rotate", "merge"),
)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FLOATING = (torch.float32, torch.bfloat16)
MOST_DIM = 256
DIM_STEP = 16
BLOCK = 64
"""Keys of a block in `score`."""


class _Attention(Structure):
    """As in attention.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("type", "kv_type", "queries", "heads", "kv_heads", "dim")),
        ("q", c_void_p),
        ("q_row", c_int64),
        ("q_head", c_int64),
        ("positions", c_void_p),
        ("k", c_void_p),
        ("k_row", c_int64),
        ("k_head", c_int64),
        ("v", c_void_p),
        ("v_row", c_int64),
        ("v_head", c_int64),
        ("k_scale", c_void_p),
        ("v_scale", c_void_p),
        ("scale_head", c_int64),
        ("runs", c_void_p),
        ("run_count", c_int64),
        ("scale", c_float),
        ("window", c_int64),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("fresh", c_int64),
        ("threads", c_int64),
    ]


class _Scoring(Structure):
    _fields_ = [("of", _Attention), ("weight", c_void_p), ("peak", c_void_p)]


class _Decoding(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "kv_type", "heads", "kv_heads", "dim")),
        ("q", c_void_p),
        ("q_row", c_int64),
        ("q_head", c_int64),
        ("positions", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("kv_slot", c_int64),
        ("kv_head", c_int64),
        ("k_scale", c_void_p),
        ("v_scale", c_void_p),
        ("scale_head", c_int64),
        ("level_count", c_int64),
        *((n, c_void_p) for n in ("levels", "rows", "row_offsets", "runs", "run_offsets")),
        ("scale", c_float),
        ("window", c_int64),
        *((name, c_void_p) for name in ("out", "lse", "sum")),
        ("threads", c_int64),
    ]


class _Merged(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "dim", "threads")),
        *((name, c_void_p) for name in ("out", "lse", "more", "more_lse")),
    ]


class _Quantised(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "bits", "tokens", "dim", "count")),
        ("blocks", c_void_p),
        ("k", c_void_p),
        ("k_row", c_int64),
        ("k_head", c_int64),
        ("v", c_void_p),
        ("v_row", c_int64),
        ("v_head", c_int64),
        *((name, c_void_p) for name in ("packed_k", "k_scale", "packed_v", "v_scale")),
        ("threads", c_int64),
    ]


def _load() -> ctypes.CDLL | None:
    for path in Path(__file__).parent.glob("_attention*.so"):
        library = ctypes.CDLL(str(path))
        library.sps2_level.restype = c_int
        for name in FUNCTIONS:
            function = getattr(library, f"sps2_{name}")
            function.argtypes, function.restype = [c_void_p, c_int], None
        return library
    return None


_library = _load()
built = _library is not None
"""Whether this installation has the kernels, whatever the CPU can do with them."""
LEVELS = ("none", "avx2", "avx512", "avx512_bf16")
level = _library.sps2_level() if _library is not None else 0
"""Which of `LEVELS` this CPU and this installation have."""


def unbuilt() -> str:
    """Why the kernels could not be built, in the compiler's words; "" if they were, or none is
    known: setup.py notes it in the source tree."""
    try:
        return (Path(__file__).parent / "unbuilt.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def serves(q: Tensor, *others: Tensor) -> bool:
    """Whether the kernels can do with these tensors: on the CPU, [.., dim] with dim contiguous.

    Of `others` the dtype is that of q, or int8.
    """
    dim = q.shape[-1]
    return (
        level > 0
        and q.dtype in FLOATING
        and dim % DIM_STEP == 0
        and dim <= MOST_DIM
        and all(x.device.type == "cpu" and x.stride(-1) == 1 for x in (q, *others))
        and all(x.dtype in (q.dtype, torch.int8) for x in others)
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Sequence[Run],
    keys: Sequence[Run],
    scale: float,
    window: int | None,
    state: State | None,
    scales: Scales | None,
) -> State:
    """`sps2.kernels.attention`."""
    made = State(torch.empty(q.shape), torch.empty(q.shape[:2])) if state is None else state
    call, _alive = _attention(q, k, v, positions(queries), keys, scale, window)
    _scale(call, scales)
    call.fresh = state is None
    call.out, call.lse = made.out.data_ptr(), made.lse.data_ptr()
    invoke("sps2_attend", call)
    return made


def score(
    q: Tensor, k: Tensor, at: Tensor, keys: Sequence[Run], scale: float
) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.csa.score`: weight [kv_heads, rows * group, blocks], peak [.., rows * group].

    Args:
        at: positions of q's rows: [rows] int32.
    """
    rows = len(q) * (q.shape[1] // k.shape[1])
    blocks = sum(-(-run.tokens // BLOCK) for run in keys)
    weight = torch.empty(k.shape[1], rows, blocks)
    peak = torch.empty(k.shape[1], rows)
    call, _alive = _attention(q, k, None, at, keys, scale, None)
    invoke("sps2_score", _Scoring(call, weight.data_ptr(), peak.data_ptr()))
    return weight, peak


def decode(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    at: Tensor,
    plan: Plan,
    scale: float,
    window: int | None,
    scales: Scales | None,
) -> State:
    """`sps2.kernels.paged_attention`.

    Args:
        at: positions of the queries: [rows] int64.
        plan: what of the pool is read for which rows.
    """
    rows, heads, dim = q.shape
    state = State(torch.empty(rows, heads, dim), torch.empty(rows, heads))
    levels = len(plan.levels) - 1
    sums = torch.empty(rows, heads) if levels > 1 else None
    call = _Decoding(
        type=TYPES[q.dtype],
        kv_type=TYPES[k_pool.dtype],
        heads=heads,
        kv_heads=k_pool.shape[1],
        dim=dim,
        q=q.data_ptr(),
        q_row=q.stride(0),
        q_head=q.stride(1),
        positions=at.data_ptr(),
        k=k_pool.data_ptr(),
        v=v_pool.data_ptr(),
        kv_slot=k_pool.stride(0),
        kv_head=k_pool.stride(1),
        level_count=levels,
        levels=plan.levels.data_ptr(),
        rows=plan.rows.data_ptr(),
        row_offsets=plan.row_offsets.data_ptr(),
        runs=plan.runs.data_ptr(),
        run_offsets=plan.run_offsets.data_ptr(),
        scale=scale,
        window=window or 0,
        out=state.out.data_ptr(),
        lse=state.lse.data_ptr(),
        sum=None if sums is None else sums.data_ptr(),
        threads=torch.get_num_threads(),
    )
    _scale(call, scales)
    invoke("sps2_decode", call)
    return state


def merge(state: State, more: State) -> None:
    """Take `more` into `state`, which is float32; both contiguous, [n, heads, dim]."""
    call = _Merged(
        type=TYPES[more.out.dtype],
        rows=state.lse.numel(),
        dim=state.out.shape[-1],
        threads=torch.get_num_threads(),
        out=state.out.data_ptr(),
        lse=state.lse.data_ptr(),
        more=more.out.data_ptr(),
        more_lse=more.lse.data_ptr(),
    )
    invoke("sps2_merge", call)


Packed = tuple[Tensor, Tensor, Tensor, Tensor]
"""k, k_scale, v, v_scale, as in `sps2.kernels.quantize`."""


def pack(k: Tensor, v: Tensor, blocks: Tensor, bits: int) -> Packed:
    """`sps2.kernels.quantize.pack`. blocks: [count, 2] int64, KV head and block."""
    count, dim = len(blocks), k.shape[-1]
    packed = _room(count, dim, bits)
    blocks = blocks.contiguous()
    call = _quantised(k, v, packed, bits)
    call.tokens, call.blocks = len(k), blocks.data_ptr()
    call.k_row, call.k_head, call.v_row, call.v_head = *k.stride()[:2], *v.stride()[:2]
    invoke("sps2_pack", call)
    return packed


def unpack(packed: Packed, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.quantize.unpack`."""
    k, v = (torch.empty(len(packed[0]), BLOCK, dim, dtype=dtype) for _ in range(2))
    invoke("sps2_unpack", _quantised(k, v, packed, 8 * packed[0].shape[-1] // dim))
    return k, v


def _room(count: int, dim: int, bits: int) -> Packed:
    levels = [torch.empty(count, BLOCK, dim * bits // 8, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.empty(count, 2, of, dtype=torch.float16) for of in (dim, BLOCK)]
    return levels[0], scales[0], levels[1], scales[1]


def _quantised(k: Tensor, v: Tensor, packed: Packed, bits: int) -> _Quantised:
    return _Quantised(
        type=TYPES[k.dtype],
        bits=bits,
        dim=k.shape[-1],
        count=len(packed[0]),
        k=k.data_ptr(),
        v=v.data_ptr(),
        packed_k=packed[0].data_ptr(),
        k_scale=packed[1].data_ptr(),
        packed_v=packed[2].data_ptr(),
        v_scale=packed[3].data_ptr(),
        threads=torch.get_num_threads(),
    )


def positions(runs: Sequence[Run]) -> Tensor:
    """Of rows that lie in runs one after the other: [rows] int32."""
    parts = [torch.arange(r.start, r.start + r.tokens, dtype=torch.int32) for r in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    at: Tensor,
    keys: Sequence[Run],
    scale: float,
    window: int | None,
) -> tuple[_Attention, tuple[Tensor, ...]]:
    """The call but for its results, and what must live until it was made."""
    runs = torch.tensor(keys, dtype=torch.int64)
    call = _Attention(
        type=TYPES[q.dtype],
        kv_type=TYPES[k.dtype],
        queries=len(q),
        heads=q.shape[1],
        kv_heads=k.shape[1],
        dim=q.shape[2],
        q=q.data_ptr(),
        q_row=q.stride(0),
        q_head=q.stride(1),
        positions=at.data_ptr(),
        k=k.data_ptr(),
        k_row=k.stride(0),
        k_head=k.stride(1),
        v=None if v is None else v.data_ptr(),
        v_row=0 if v is None else v.stride(0),
        v_head=0 if v is None else v.stride(1),
        runs=runs.data_ptr(),
        run_count=len(keys),
        scale=scale,
        window=window or 0,
        threads=torch.get_num_threads(),
    )
    return call, (runs, at)


def _scale(call: "_Attention | _Decoding", scales: Scales | None) -> None:
    if scales is not None:
        k_scale, v_scale = scales
        assert k_scale.stride() == v_scale.stride()
        assert k_scale.stride(0) == 1, "scales lie by KV head"
        call.k_scale, call.v_scale = k_scale.data_ptr(), v_scale.data_ptr()
        call.scale_head = k_scale.stride(1)


def invoke(name: str, arguments: Structure) -> None:
    """Call a function of attention.cpp."""
    getattr(_library, name)(byref(arguments), level)
