"""Models in several GGUF files, and files that lie about what they have."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sps2.common.errors import Invalid
from sps2.common.models.gguf_files import open_model

Change = Callable[[Any], object]


def written(path: Path, tensors: list[str], extra: Change = lambda writer: None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    extra(writer)
    for name in tensors:
        values = np.full((4, 32), len(name), np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(folder: Path, numbers: tuple[int, int] = (0, 1), total: int = 2) -> list[Path]:
    paths = []
    for index, number in enumerate(numbers):

        def parted(writer: Any, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", total)

        path = folder / f"m-0000{index + 1}-of-00002.gguf"
        paths.append(written(path, [f"blk.{index}.attn_q.weight"], parted))
    return paths


def test_any_part_opens_all(tmp_path: Path) -> None:
    for path in split(tmp_path):
        model = open_model(path)
        assert list(model.tensors) == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
        assert model.fields["general.architecture"] == "llama"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    second.unlink()
    with pytest.raises(Invalid, match=r"lacks m-00002-of-00002\.gguf, of 2 parts of a model"):
        open_model(first)


def test_parts_in_the_wrong_order(tmp_path: Path) -> None:
    first, _ = split(tmp_path, (1, 0))
    with pytest.raises(Invalid, match=r"m-00001-of-00002\.gguf is part 2 of 2"):
        open_model(first)


def test_parts_that_lack_a_tensor(tmp_path: Path) -> None:
    first, second = split(tmp_path, total=3)
    with pytest.raises(Invalid, match=r"m-00001-of-00002\.gguf have 2 tensors, not all 3"):
        open_model(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(Invalid, match=r"part 1 of 2"):
        open_model(first)


def patched(path: Path, after: bytes, form: str, offset: int, value: int) -> None:
    """Put a number into a file, `offset` bytes behind the end of the text `after`."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(after) + len(after) + offset, value)
    path.write_bytes(data)


NAME = b"blk.7.attn_q.weight"
COUNTS = b"GGUF\3\0\0\0"


@pytest.mark.parametrize(
    ("after", "form", "offset", "value", "message"),
    [
        (NAME, "<I", 20, 999, "tensor 'blk.7.attn_q.weight' is of type 999, which is not known"),
        (NAME, "<Q", 4, 1 << 60, "tensor 'blk.7.attn_q.weight' ends at byte"),
        (NAME, "<Q", 4, 33, "tensor 'blk.7.attn_q.weight' has rows of 33; Q8_0 needs"),
        (NAME, "<Q", 12, 0, r"tensor 'blk.7.attn_q.weight' has the shape \[32, 0\]"),
        (NAME, "<Q", 24, 1 << 40, "tensor 'blk.7.attn_q.weight' ends at byte"),
        (NAME, "<I", 0, 1 << 30, "it ends at byte"),
        (NAME, "<I", 0, 0, "."),
        (COUNTS, "<Q", 0, 1 << 62, "it claims to have 4611686018427387904 tensors"),
        (COUNTS, "<Q", 8, 1 << 62, "it claims to have 4611686018427387904 fields"),
        (b"some.list", "<Q", 8, 1 << 50, "claims to have 1125899906842624 entries of an array"),
    ],
)
def test_absurd_numbers_are_found_before_memory_is_taken(
    tmp_path: Path, after: bytes, form: str, offset: int, value: int, message: str
) -> None:
    def listed(writer: Any) -> None:
        writer.add_array("some.list", [1, 2, 3])

    path = written(tmp_path / "bad.gguf", [NAME.decode(), "blk.8.attn_q.weight"], listed)
    open_model(path)
    patched(path, after, form, offset, value)
    with pytest.raises(Invalid, match=rf"bad\.gguf is not a sound GGUF file: .*{message}"):
        open_model(path)


def test_a_truncated_file_names_the_tensor(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.gguf", ["a.weight", "b.weight"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Invalid, match=r"bad\.gguf is not .* tensor 'b\.weight' ends at byte"):
        open_model(path)
