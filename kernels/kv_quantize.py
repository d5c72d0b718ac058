"""Quantises keys (per channel) and values (per token) to 8 or 4 bits, in blocks of tokens.

It is for transfers. Quantisation is asymmetric, with a float16 lower edge and step for every
channel of a block of keys and for every token of values. Source of the axes: KIVI (arXiv
2402.02750), section 3.
"""

import torch
from torch import Tensor

from sps2.kernels import gpu, native
from sps2.kernels.contracts import BLOCK, Bits, Packed


def blocks_of(x: Tensor) -> Tensor:
    """[tokens, kv_heads, dim] -> [kv_heads, blocks, BLOCK, dim]; the last token is repeated."""
    tokens, heads, dim = x.shape
    x = x.transpose(0, 1)
    if rest := -tokens % BLOCK:
        x = torch.cat((x, x[:, -1:].expand(heads, rest, dim)), 1)
    return x.reshape(heads, -1, BLOCK, dim)


def pack(k: Tensor, v: Tensor, which: Tensor, bits: Bits = 8, *, roomy: bool = False) -> Packed:
    """Quantise some of the blocks of k and v, [tokens, kv_heads, dim], KV head by KV head.

    Args:
        which: [kv_heads, blocks] bool; the last block is filled up with the last token.
        roomy: whether the result may have further, meaningless blocks at its end. Then a GPU is
            not waited for to learn the number of blocks.
    """
    if gpu.serves(k):
        from sps2.kernels.gpu import kv_quantize

        return kv_quantize.pack(k, v, which, bits, roomy)
    if native.serves(k, v):
        return Packed(*native.pack(k, v, which.nonzero(), bits))
    keys, k_scale = _quantise(blocks_of(k)[which], 1, bits)
    values, v_scale = _quantise(blocks_of(v)[which], 2, bits)
    if bits == 4:
        keys, values = _fold(keys), _fold(values)
    return Packed(keys, k_scale, values, v_scale)


def unpack(packed: Packed, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The keys and values of `packed`, [blocks, BLOCK, dim] each, exact to half a step."""
    if gpu.serves(packed.k):
        from sps2.kernels.gpu import kv_quantize

        return kv_quantize.unpack(packed, dtype)
    k, v = packed.k, packed.v
    dim = packed.k_scale.shape[-1]
    if native.level and dtype in native.FLOATING and dim <= native.MOST_DIM:
        return native.unpack(packed, dim, dtype)
    if k.shape[-1] * 2 == dim:
        k, v = _unfold(k), _unfold(v)
    return _restore(k, packed.k_scale, 1, dtype), _restore(v, packed.v_scale, 2, dtype)


def pack_all(k: Tensor, v: Tensor) -> Packed:
    """Quantise all keys and values, [tokens, kv_heads, dim], to 8 bits."""
    tokens, kv_heads, _ = k.shape
    every = torch.ones(kv_heads, -(-tokens // BLOCK), dtype=torch.bool, device=k.device)
    return pack(k, v, every, roomy=True)


def unpack_all(packed: Packed, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Undo `pack_all`: keys and values [tokens, kv_heads, dim], as views of [kv_heads, ...]."""
    blocks = -(-tokens // BLOCK)
    k, v = (x.view(-1, blocks * BLOCK, x.shape[-1]) for x in unpack(packed, dtype))
    return k[:, :tokens].transpose(0, 1), v[:, :tokens].transpose(0, 1)


def _quantise(x: Tensor, axis: int, bits: Bits) -> tuple[Tensor, Tensor]:
    """Quantise x [n, BLOCK, dim] to uint8; edges and steps along `axis` are [n, 2, other axis]."""
    x = x.float()
    low, high = x.aminmax(dim=axis)
    low = low.half()
    top = 2**bits - 1
    step = ((high - low.float()) / top).clamp_(min=6e-8).half()
    scaled = (x - low.float().unsqueeze(axis)) / step.float().unsqueeze(axis)
    packed = scaled.round_().clamp_(0, top).to(torch.uint8)
    return packed.contiguous(), torch.stack((low, step), 1)


def _restore(x: Tensor, scale: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    low, step = scale.float().unbind(1)
    return torch.addcmul(low.unsqueeze(axis), x.float(), step.unsqueeze(axis)).to(dtype)


def _fold(x: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return low | (high << 4)


def _unfold(x: Tensor) -> Tensor:
    return torch.cat((x & 15, x >> 4), -1)


def quantise_rows(x: Tensor, scales: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Quantise symmetrically to int8 with a scale per row of the last axis: [.., n] -> [..]."""
    scale = (x.float().abs().amax(-1) / 127).clamp_(min=6e-8).to(scales)
    return (x.float() / scale.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def restore_rows(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `quantise_rows`, exact to half a step."""
    return (x.float() * scale.float()[..., None]).to(dtype)
