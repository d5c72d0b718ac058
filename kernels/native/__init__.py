"""The C++ kernels for CPUs.

They are built if there is a compiler for x86-64 or 64-bit ARM (setuptools, optional), and loaded by
ctypes, so that one build works with every version of Python and torch. The instruction set is
chosen at run time. Callers check `serves` first, and use torch if it is false.
"""

import ctypes
import platform
from collections.abc import Sequence
from ctypes import Structure, byref, c_int, c_int64, c_void_p, sizeof
from pathlib import Path

import torch
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.native import abi
from sps2.kernels.relay import Plan
from sps2.kernels.state import Run, Scales, State

FUNCTIONS = (
    *("attend", "score", "decode", "pack", "unpack"),
    *("layer", "product", "restore", "swiglu", "add_norm", "rotate", "merge"),
    *("rans_encode", "rans_decode", "rans_count", "split", "join"),
)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FLOATING = (torch.float32, torch.bfloat16)
MOST_DIM = 256
DIM_STEP = 16
BLOCK = 64
"""Keys of a block in `score`."""
PAIRS_ALONE = 1 << 15
"""Pairs of a query and a key up to which one thread is done before another would have begun."""


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Load the kernels that fit this Python code; else None, and what is wrong with those found."""
    found = sorted(Path(__file__).parent.glob("_attention*.so"), key=lambda path: len(path.name))
    wrong = ""
    for path in found:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            wrong = wrong or f"{path.name} cannot be loaded: {error}"
            continue
        if not _fits(library):
            wrong = wrong or f"{path.name} was built from other sources than these"
            continue
        library.sps2_level.restype = c_int
        for name in FUNCTIONS:
            function = getattr(library, f"sps2_{name}")
            function.argtypes, function.restype = [c_void_p, c_int], c_int
        return library, ""
    return None, wrong


def _fits(library: ctypes.CDLL) -> bool:
    """Whether the library has the structures of `abi`."""
    wanted = [abi.VERSION, *map(sizeof, abi.STRUCTURES)]
    sizes = (c_int64 * len(wanted))()
    try:
        count = library.sps2_abi(sizes, len(sizes))
    except AttributeError:  # older than the check
        return False
    return count == len(wanted) and list(sizes) == wanted


_library, unfit = _load()
"""The kernels; or why those that were found do not fit, "" if none were found."""
built = _library is not None
"""Whether this installation has the kernels, whether or not the CPU supports them."""
IS_ARM = platform.machine() in ("aarch64", "arm64")
LEVELS = ("none", "neon") if IS_ARM else ("none", "avx2", "avx512", "avx512_bf16", "amx_bf16")
level = _library.sps2_level() if _library is not None else 0
"""The index in `LEVELS` of the instruction set in use."""


def unbuilt() -> str:
    """Why the kernels could not be built, in the compiler's words, which setup.py stores in the
    source tree; "" if they were built, or nothing is known."""
    try:
        return (Path(__file__).parent / "unbuilt.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def serves(q: Tensor, *others: Tensor) -> bool:
    """Whether the kernels support these tensors: on the CPU, [.., dim] with dim contiguous.

    The dtype of `others` must be that of q, or int8.
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
    _require_state(q, made)
    _require_keys(q, k, v, scales)
    call, _alive = _attention(q, k, v, positions(queries), keys, scale, window)
    _scale(call, scales)
    call.fresh = state is None
    call.out, call.lse = made.out.data_ptr(), made.lse.data_ptr()
    invoke("sps2_attend", call)
    return made


def score(
    q: Tensor, k: Tensor, at: Tensor, keys: Sequence[Run], scale: float
) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.csa_scores.score`: weight [kv_heads, rows * group, blocks]; peak has no blocks.

    Args:
        at: positions of q's rows: [rows] int32.
    """
    _require_keys(q, k, k, None)
    rows = len(q) * (q.shape[1] // k.shape[1])
    blocks = sum(-(-run.tokens // BLOCK) for run in keys)
    weight = torch.empty(k.shape[1], rows, blocks)
    peak = torch.empty(k.shape[1], rows)
    call, _alive = _attention(q, k, None, at, keys, scale, None)
    invoke("sps2_score", abi.Scoring(call, weight.data_ptr(), peak.data_ptr()))
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
        plan: the keys of the pool that are read for each row.
    """
    _require_keys(q, k_pool, v_pool, scales)
    if k_pool.stride() != v_pool.stride():
        raise ValueError(f"v_pool has strides {v_pool.stride()}, not {k_pool.stride()} as k_pool")
    if plan.slots > len(k_pool):
        raise ValueError(f"plan reads {plan.slots} slots, and k_pool has {len(k_pool)}")
    _require_positions(at, torch.int64, q)
    if plan.queries > len(q):
        raise ValueError(f"plan has {plan.queries} rows, q {len(q)}")
    rows, heads, dim = q.shape
    state = State(torch.empty(rows, heads, dim), torch.empty(rows, heads))
    levels = len(plan.levels) - 1
    sums = torch.empty(rows, heads) if levels > 1 else None
    call = abi.Decoding(
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
    """Merge `more` into `state`, which is float32; both contiguous, [n, heads, dim]."""
    _require_state(state.out, state)
    if not (
        more.out.dtype in FLOATING
        and more.out.shape == state.out.shape
        and more.lse.shape == state.lse.shape
        and more.lse.dtype == torch.float32
        and more.out.is_contiguous()
        and more.lse.is_contiguous()
    ):
        check.typed("more.out", more.out, *FLOATING)
        check.state(state.out, State(more.out.float(), more.lse))
        raise ValueError("more.out and more.lse must be contiguous")
    call = abi.Merged(
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
"""k, k_scale, v, v_scale, as in `sps2.kernels.kv_quantize`."""


def pack(k: Tensor, v: Tensor, blocks: Tensor, bits: int) -> Packed:
    """`sps2.kernels.kv_quantize.pack`. blocks: [count, 2] int64, KV head and block."""
    count, dim = len(blocks), k.shape[-1]
    if k.shape != v.shape or k.dtype != v.dtype:
        check.shaped("v", v, tuple(k.shape))
        check.typed("v", v, k.dtype)
    check.typed("blocks", blocks, torch.int64)
    packed = _room(count, dim, bits)
    blocks = blocks.contiguous()
    call = _quantised(k, v, packed, bits)
    call.tokens, call.blocks = len(k), blocks.data_ptr()
    call.k_row, call.k_head, call.v_row, call.v_head = *k.stride()[:2], *v.stride()[:2]
    invoke("sps2_pack", call)
    return packed


def unpack(packed: Packed, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.kv_quantize.unpack`."""
    count, width = len(packed[0]), packed[0].shape[-1]
    check.typed("packed.k", packed[0], torch.uint8)
    if width not in (dim, dim // 2):
        raise ValueError(f"packed.k has {width} bytes a token, not {dim} or {dim // 2}")
    for name, x, like in zip(
        ("k", "k_scale", "v", "v_scale"), packed, _room(count, dim, 8 * width // dim), strict=True
    ):
        check.shaped(f"packed.{name}", x, tuple(like.shape))
        check.typed(f"packed.{name}", x, like.dtype)
        if not x.is_contiguous():
            raise ValueError(f"packed.{name} must be contiguous")
    k, v = (torch.empty(len(packed[0]), BLOCK, dim, dtype=dtype) for _ in range(2))
    invoke("sps2_unpack", _quantised(k, v, packed, 8 * packed[0].shape[-1] // dim))
    return k, v


def _room(count: int, dim: int, bits: int) -> Packed:
    levels = [torch.empty(count, BLOCK, dim * bits // 8, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.empty(count, 2, of, dtype=torch.float16) for of in (dim, BLOCK)]
    return levels[0], scales[0], levels[1], scales[1]


def _quantised(k: Tensor, v: Tensor, packed: Packed, bits: int) -> abi.Quantised:
    return abi.Quantised(
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
    """The positions of rows that are given as runs: [rows] int32."""
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
) -> tuple[abi.Attention, tuple[Tensor, ...]]:
    """The arguments of a call without its results, and objects that must live until the call."""
    _require_positions(at, torch.int32, q)
    for run in keys:
        if run.slot < 0 or run.tokens < 0 or run.slot + run.tokens > len(k):
            raise ValueError(f"keys have {run}, outside the {len(k)} rows of k")
    runs = torch.tensor(keys, dtype=torch.int64)
    call = abi.Attention(
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
        threads=torch.get_num_threads() if len(q) * len(k) > PAIRS_ALONE else 1,
    )
    return call, (runs, at)


def _scale(call: "abi.Attention | abi.Decoding", scales: Scales | None) -> None:
    if scales is not None:
        k_scale, v_scale = scales
        call.k_scale, call.v_scale = k_scale.data_ptr(), v_scale.data_ptr()
        call.scale_head = k_scale.stride(1)


def _require_keys(q: Tensor, k: Tensor, v: Tensor, scales: Scales | None) -> None:
    """A fast `check.keys`, for every layer of every step; calls that for the error message."""
    if not (
        q.dim() == k.dim() == 3
        and q.shape[2] == k.shape[2]
        and v.shape == k.shape
        and k.shape[1] > 0
        and q.shape[1] % k.shape[1] == 0
        and k.dtype == v.dtype == (q.dtype if scales is None else torch.int8)
        and q.stride(2) == k.stride(2) == v.stride(2) == 1
    ):
        check.queries(q, 1.0)
        check.keys(q, k, v, scales)
    if scales is not None:
        k_scale, v_scale = scales
        if not (
            k_scale.shape == v_scale.shape == k.shape[:2]
            and k_scale.dtype == v_scale.dtype == torch.float32
        ):
            check.keys(q, k, v, scales)
        if k_scale.stride() != v_scale.stride() or k_scale.stride(0) != 1:
            raise ValueError("scales must both lie by KV head, as views of [kv_heads, rows]")


def _require_state(q: Tensor, state: State) -> None:
    """Check that `state` is a contiguous float32 state of the rows of `q`."""
    out, lse = state
    if not (
        out.shape == q.shape
        and lse.shape == q.shape[:2]
        and out.dtype == lse.dtype == torch.float32
        and out.is_contiguous()
        and lse.is_contiguous()
    ):
        check.state(q, state)
        raise ValueError("state.out and state.lse must be contiguous")


def _require_positions(at: Tensor, dtype: torch.dtype, q: Tensor) -> None:
    """Check that `at` has a position for each row of `q`."""
    if at.shape != q.shape[:1] or at.dtype != dtype or not at.is_contiguous():
        check.shaped("positions", at, (len(q),))
        check.typed("positions", at, dtype)
        raise ValueError("positions must be contiguous")


def invoke(name: str, arguments: Structure) -> None:
    """Call a function of attention.cpp.

    Raises:
        MemoryError: there is not enough memory for its work.
    """
    if getattr(_library, name)(byref(arguments), level):
        raise MemoryError(f"there is not enough memory for {name.removeprefix('sps2_')}")
