"""The arguments of the C++ kernels: the structures of attention.cpp, field by field."""

from ctypes import Structure, c_float, c_int32, c_int64, c_uint32, c_void_p

VERSION = 2
"""Incremented, here and in attention.cpp, with a change that alters no structure's size."""


class Run(Structure):
    _fields_ = [(name, c_int64) for name in ("row", "position", "tokens")]


class Attention(Structure):
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


class Scoring(Structure):
    _fields_ = [("of", Attention), ("weight", c_void_p), ("peak", c_void_p)]


class Decoding(Structure):
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


class Quantised(Structure):
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


class Merged(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "dim", "threads")),
        *((name, c_void_p) for name in ("out", "lse", "more", "more_lse")),
    ]


class Product(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("form", c_int64)]


class Layer(Structure):
    _fields_ = [
        *((n, c_int64) for n in ("type", "rows", "hidden", "inner", "heads", "kv_heads", "dim")),
        ("eps", c_float),
        ("threads", c_int64),
        ("attended", c_void_p),
        ("x", c_void_p),
        ("o", Product),
        ("gate_up", Product * 2),
        ("down", Product),
        ("mlp_norm", c_void_p),
        ("next_norm", c_void_p),
        ("qkv", Product * 3),
        *((n, c_void_p) for n in ("q_norm", "k_norm", "cosines", "sines", "q", "k", "v", "normed")),
    ]


class FewRows(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "size", "threads")),
        ("x", c_void_p),
        ("product", Product),
        ("out", c_void_p),
    ]


class Restored(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "form", "blocks", "inputs", "threads")),
        ("weight", c_void_p),
        ("out", c_void_p),
    ]


class Gated(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "size", "threads")),
        ("gate", c_void_p),
        ("gate_row", c_int64),
        ("up", c_void_p),
        ("up_row", c_int64),
        ("out", c_void_p),
    ]


class Normed(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "size", "threads", "x_type")),
        ("x", c_void_p),
        ("x_row", c_int64),
        ("plus", c_void_p),
        ("weight", c_void_p),
        ("eps", c_float),
        ("out", c_void_p),
    ]


class Rotated(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "heads", "dim", "threads")),
        ("x", c_void_p),
        ("x_row", c_int64),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("out", c_void_p),
    ]


class CodeTable(Structure):
    _fields_ = [
        ("slots", c_uint32 * 4096),
        ("ranges", c_uint32 * 256),
        ("least", c_int32),
        ("escape", c_uint32),
        ("shift", c_int32),
        ("unused", c_int32),
    ]


class Coded(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("channels", "count", "width")),
        *((name, c_void_p) for name in ("symbols", "which", "tables", "data")),
        ("size", c_int64),
    ]


class Counted(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("channels", "count", "width")),
        ("symbols", c_void_p),
        ("least", c_int64),
        ("span", c_int64),
        ("counts", c_void_p),
    ]


class Halves(Structure):
    _fields_ = [
        ("count", c_int64),
        *((name, c_void_p) for name in ("numbers", "exponents", "rest")),
    ]


STRUCTURES: tuple[type[Structure], ...] = (
    *(Run, Attention, Scoring, Decoding, Quantised, Merged, Product, Layer, FewRows, Restored),
    *(Gated, Normed, Rotated, CodeTable, Coded, Counted, Halves),
)
"""The structures in the order of `sps2_abi`."""
