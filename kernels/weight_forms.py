"""Weights in blocks of codes, scales and minimums: the forms of GGUF, and those made here.

Blocks have the codes and scales of a file's blocks, so the same numbers, in another order: sixteen
outputs are stored side by side (see `QuantisedWeight`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels.native import weights as native

GROUP, BESIDE = native.GROUP, native.BESIDE
"""Inputs and outputs whose codes lie together."""
PIECE = 1 << 22
"""Weights that are dequantised at a time, where only some are wanted."""

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Of llama.cpp's `kvalues_iq4nl`."""


@dataclass(frozen=True, slots=True)
class Form:
    """How blocks store numbers: scale * code + minimum, scale * (code - offset), or
    scale * levels[code].

    number: the form's place in `by_form` of native/weights.inc.
    bits: of a code.
    inputs: of a block, which has a scale in float16, and a minimum too if `minimum`.
    scaled: inputs that share a scale. If these are fewer than a block's, scales and minimums are
        the block's times an int8 each.
    """

    name: str
    number: int
    bits: int
    inputs: int
    scaled: int
    minimum: bool = False
    offset: int = 0
    levels: tuple[int, ...] = ()

    @property
    def scales(self) -> int:
        """Scales of a block and an output."""
        return self.inputs // self.scaled

    @property
    def header(self) -> int:
        """Bytes of a block before the codes."""
        return BESIDE * (1 + self.minimum) * (2 + (self.scales if self.scales > 1 else 0))

    @property
    def size(self) -> int:
        """Bytes of a block of `inputs` inputs and BESIDE outputs."""
        return self.header + self.inputs * BESIDE * self.bits // 8

    @property
    def bits_per_weight(self) -> float:
        return self.size * 8 / (self.inputs * BESIDE)

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of the parts that a code is stored in, the lowest first."""
        return (self.bits,) if self.bits in (4, 8) else (4, self.bits - 4)


FORMS = {
    form.name: form
    for form in (
        Form("Q4_1", 1, 4, 32, 32, minimum=True),
        Form("int8", 2, 8, 32, 32, minimum=True),
        Form("Q4_0", 3, 4, 32, 32, offset=8),
        Form("Q5_0", 4, 5, 32, 32, offset=16),
        Form("Q5_1", 5, 5, 32, 32, minimum=True),
        Form("Q8_0", 6, 8, 32, 32, offset=128),
        Form("Q2_K", 7, 4, 256, 16, minimum=True),
        Form("Q3_K", 8, 4, 256, 16, offset=4),
        Form("Q4_K", 9, 4, 256, 32, minimum=True),
        Form("Q5_K", 10, 5, 256, 32, minimum=True),
        Form("Q6_K", 11, 6, 256, 16, offset=32),
        Form("IQ4_NL", 12, 4, 32, 32, levels=IQ4_LEVELS),
        Form("IQ4_XS", 13, 4, 256, 32, levels=IQ4_LEVELS),
    )
}
"""By name: that of GGUF's type where there is one. Codes of 2 and 3 bits take 4."""


class Parts(NamedTuple):
    """What blocks are made of, by output.

    codes: [outputs, inputs] uint8.
    scale, minimum: [outputs, blocks] float16; minimum is None where the form has none.
    scales, minimums: [outputs, blocks, scales] int8, what `scale` and `minimum` are multiplied by;
        None where the form has none.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    scales: Tensor | None = None
    minimums: Tensor | None = None


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight [outputs, inputs].

    blocks: [ceil(outputs / BESIDE), inputs / form.inputs, form.size] uint8. Each has the scales of
        BESIDE outputs, then their minimums, then the int8 multiples of both. The codes follow, by
        GROUP inputs. Those of each of `form.planes` are words of 32 bits, one for each output: as
        many consecutive inputs as fit, those of even inputs in the low half.
    """

    blocks: Tensor
    outputs: int
    form: Form

    @property
    def bits(self) -> int:
        return self.form.bits

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.blocks.shape[1] * self.form.inputs

    def rows(self, start: int, stop: int) -> "QuantisedWeight":
        """The outputs from `start` to `stop`, whole blocks, as a view."""
        assert self.divides_rows(start, stop)
        part = self.blocks[start // BESIDE : -(-stop // BESIDE)]
        return QuantisedWeight(part, stop - start, self.form)

    def columns(self, start: int, stop: int) -> "QuantisedWeight":
        """The inputs from `start` to `stop`, whole blocks, as a copy."""
        assert self.divides_columns(start, stop)
        part = self.blocks[:, start // self.form.inputs : stop // self.form.inputs]
        return QuantisedWeight(part.contiguous(), self.outputs, self.form)

    def divides_rows(self, start: int, stop: int) -> bool:
        """Whether blocks begin and end at these outputs."""
        return start % BESIDE == 0 and (stop % BESIDE == 0 or stop == self.outputs)

    def divides_columns(self, start: int, stop: int) -> bool:
        """Whether blocks begin and end at these inputs."""
        return start % self.form.inputs == stop % self.form.inputs == 0

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The dequantised weight: [outputs, inputs], in any order in memory."""
        if native.serves(self.blocks, dtype):
            return native.restore(self, dtype).t()[: self.outputs]
        return _values(self).to(dtype)[: self.outputs]

    def take(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some outputs, dequantised. rows: [n] int64 -> [n, inputs]."""
        few = max(1, PIECE // (BESIDE * self.shape[1]))
        return torch.cat([self._taken(some, dtype) for some in rows.split(few)])

    def _taken(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        blocks = self.blocks[rows // BESIDE]
        beside = QuantisedWeight(blocks, len(rows) * BESIDE, self.form).restored(dtype)
        return beside[torch.arange(len(rows)) * BESIDE + rows % BESIDE].contiguous()


def packed(form: Form, parts: Parts) -> QuantisedWeight:
    """A weight in blocks; zero outputs fill the last one."""
    codes = _filled(parts.codes).unflatten(-1, (-1, form.inputs // GROUP, GROUP))
    header = [
        _filled(x).movedim(1, -1).contiguous().view(torch.uint8)
        for x in (parts.scale, parts.minimum, parts.scales, parts.minimums)
        if x is not None
    ]
    below = 0
    planes = []
    for width in form.planes:
        planes.append(_plane(codes >> below & (1 << width) - 1, width))
        below += width
    parted = [*(x.flatten(2) for x in header), torch.cat(planes, -1).flatten(2)]
    return QuantisedWeight(torch.cat(parted, -1), len(parts.codes), form)


def _filled(x: Tensor) -> Tensor:
    """[outputs, ...] -> [blocks of outputs, BESIDE, ...]."""
    rest = -len(x) % BESIDE
    if rest:
        x = torch.cat((x, x.new_zeros(rest, *x.shape[1:])))
    filled: Tensor = x.unflatten(0, (-1, BESIDE))
    return filled


def _plane(codes: Tensor, width: int) -> Tensor:
    """[across, BESIDE, down, groups, GROUP] of `width` bits -> [across, down, groups, bytes]."""
    words = codes.unflatten(-1, (width, 16 // width, 2)).permute(0, 2, 3, 4, 1, 6, 5)
    places = words.unflatten(-1, (2, 8 // width))
    joined: Tensor = torch.zeros_like(places[..., 0])
    for place in range(8 // width):
        joined |= places[..., place] << place * width
    return joined.flatten(3)


def _codes(planes: Tensor, width: int) -> Tensor:
    """The opposite of `_plane`."""
    words = planes.unflatten(-1, (width, BESIDE, 2, 2))
    places = [words >> place * width & (1 << width) - 1 for place in range(8 // width)]
    return torch.stack(places, -1).flatten(-2).permute(0, 4, 1, 2, 3, 6, 5).flatten(4)


def _values(weight: QuantisedWeight) -> Tensor:
    """The numbers in float32, without the C++ kernel: [outputs of all blocks, inputs]."""
    form = weight.form
    header, rest = weight.blocks.tensor_split([form.header], -1)
    halves, counts = header.tensor_split([2 * BESIDE * (1 + form.minimum)], -1)
    factors = halves.contiguous().view(torch.float16).float().unflatten(-1, (-1, 1, BESIDE))
    if form.scales > 1:
        factors = factors * counts.view(torch.int8).unflatten(-1, (-1, form.scales, BESIDE))
    across, down = weight.blocks.shape[:2]
    each = factors.permute(2, 0, 4, 1, 3).reshape(-1, across * BESIDE, down * form.scales, 1)
    widths = [GROUP * BESIDE * width // 8 for width in form.planes]
    groups = rest.unflatten(-1, (form.inputs // GROUP, -1)).split(widths, -1)
    codes = _codes(groups[0], form.planes[0])
    if len(groups) > 1:
        codes = codes | _codes(groups[1], form.planes[1]) << 4
    codes = codes.reshape(across * BESIDE, down * form.scales, form.scaled)
    if form.levels:
        levels = torch.tensor(form.levels, dtype=torch.float32)[codes.long()]
    else:
        levels = codes.float() - form.offset
    values: Tensor = levels * each[0]
    return (values + each[1] if form.minimum else values).flatten(1)
