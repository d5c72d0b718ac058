"""The format of a page on disk; docs/kv-disk.md describes it byte by byte."""

import struct
import zlib
from typing import Any, NamedTuple

from sps2.common.page_hashes import HASH_BYTES

MAGIC = b"SPS2KV\r\n"
VERSION = 1
DTYPES = ("float32", "bfloat16", "float16", "int8")
"""Types of stored keys and values, by their number in a header."""

_FIELDS = struct.Struct(f"<8s6I{HASH_BYTES}s{HASH_BYTES}sQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class Damaged(ValueError):
    """A file is not the page that its name says; the message says why."""


class PageFormat(NamedTuple):
    """What all pages of a folder have in common.

    identity: a hash of the model and of all that KV depends on besides tokens and attention.
    """

    layers: int
    kv_heads: int
    page_tokens: int
    head_dim: int
    dtype: str
    identity: bytes
    payload_bytes: int

    @property
    def file_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes

    def header(self, page_hash: bytes, payload: Any) -> bytes:
        """The header of a page with this payload, which is any buffer of bytes."""
        return self._header(page_hash, zlib.crc32(payload))

    def check(self, page_hash: bytes, header: bytes, payload: Any) -> None:
        """Raises Damaged unless header and payload are those of this page."""
        if header[: len(MAGIC)] != MAGIC:
            raise Damaged("it is no page of KV")
        if len(header) < HEADER_BYTES or len(payload) != self.payload_bytes:
            raise Damaged("it is cut off")
        if header != self._header(page_hash, zlib.crc32(payload)):
            raise Damaged("its checksum is wrong, or it is of another page")

    def _header(self, page_hash: bytes, checksum: int) -> bytes:
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            self.layers,
            self.kv_heads,
            self.page_tokens,
            self.head_dim,
            DTYPES.index(self.dtype),
            self.identity,
            page_hash,
            self.payload_bytes,
            checksum,
        )
        return fields + _CHECKSUM.pack(zlib.crc32(fields))
