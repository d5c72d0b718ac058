"""Opens a model in GGUF files, and checks what they say before anything is allocated."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from sps2.common.errors import Invalid
from sps2.common.models import gguf_names

MOST_ENTRIES = 1 << 24
"""Of an array, more than any vocabulary has; of fields and tensors together too."""
MOST_DIMENSIONS = 4


class GgufModel(NamedTuple):
    """A model in one file, or several.

    fields: what the first file says of the model, by key.
    tensors: `gguf.ReaderTensor`s of all files, by name; their data is mapped.
    """

    fields: dict[str, Any]
    tensors: dict[str, Any]


def open_model(source: Path) -> GgufModel:
    """Open a GGUF file, or all parts of a model that `source` is a part of.

    Raises:
        Invalid: a file is missing or unsound; the message names it, and the tensor concerned.
    """
    paths = gguf_names.parts(source)
    readers = [_opened(path) for path in paths]
    for index, (path, reader) in enumerate(zip(paths, readers, strict=True)):
        part, count = (_number(reader, f"split.{n}", d) for n, d in (("no", 0), ("count", 1)))
        if (part, count) != (index, len(paths)) and count > 1:
            raise Invalid(
                f"{path} is part {part + 1} of {count} of a model; name all parts as "
                f"NAME-{part + 1:05}-of-{count:05}.gguf, beside each other"
            )
    tensors: dict[str, Any] = {}
    for path, reader in zip(paths, readers, strict=True):
        for tensor in reader.tensors:
            if tensor.name in tensors:
                raise Invalid(f"{path}: tensor {tensor.name!r} is in an earlier part too")
            tensors[tensor.name] = tensor
    wanted = _number(readers[0], "split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise Invalid(f"the parts of {paths[0]} have {len(tensors)} tensors, not all {wanted}")
    try:
        fields = {name: field.contents() for name, field in readers[0].fields.items()}
    except Exception as error:  # text that is not UTF-8, for one
        raise Invalid(f"{paths[0]} is not a sound GGUF file: {error}") from error
    return GgufModel(fields, tensors)


def _opened(path: Path) -> Any:
    try:
        return _Reader(path)
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # on garbage the reader raises anything
        raise Invalid(f"{path} is not a sound GGUF file: {error}") from error


def _number(reader: Any, key: str, default: int) -> int:
    return int(reader.fields[key].contents()) if key in reader.fields else default


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's reader, with checks of what a file says against what it has."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        """Reading past the end fails instead of giving short arrays."""
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, byte {end} is needed")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            _few("entries of an array", self._get(orig_offs + 4, np.uint64)[0])
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_fields(self, offs: int, count: int) -> int:
        _few("fields", count)
        return int(super()._build_fields(offs, count))

    def _build_tensor_info(self, offs: int, count: int) -> Any:
        _few("tensors", count)
        return super()._build_tensor_info(offs, count)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, _, dims, shape, kind, offset = field.parts
            try:
                size = _size(list(map(int, shape[: int(dims[0])])), int(kind[0]))
            except ValueError as error:
                raise ValueError(f"tensor {field.name!r} {error}") from error
            end = int(start_offs) + int(offset[0]) + size
            if end > self.data.size:
                raise ValueError(
                    f"tensor {field.name!r} ends at byte {end}, the file at {self.data.size}"
                )
        super()._build_tensors(start_offs, fields)


def _few(what: str, count: Any) -> None:
    if int(count) > MOST_ENTRIES:
        raise ValueError(f"it claims to have {count} {what}")


def _size(shape: list[int], number: int) -> int:
    """Bytes of a tensor. Raises ValueError if there is no such tensor."""
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"is of type {number}, which is not known") from None
    if not 0 < len(shape) <= MOST_DIMENSIONS or min(shape) < 1:
        raise ValueError(f"has the shape {shape}")
    beside, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[0] % beside:
        raise ValueError(f"has rows of {shape[0]}; {kind.name} needs a multiple of {beside}")
    return math.prod(shape) // int(beside) * int(size)
