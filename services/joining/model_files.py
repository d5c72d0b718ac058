"""The files of the served model, for machines that have none."""

import asyncio
from fnmatch import fnmatch
from pathlib import Path

from sps2.common.errors import Invalid
from sps2.common.messages import ModelFile, Piece
from sps2.common.models import digests

KINDS = ("*.json", "*.jinja", "*.safetensors")
"""What a model's folder has of a model; other files may lie there."""


class ModelFiles:
    """The files in a model's folder, which others read in pieces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._listing: asyncio.Task[tuple[ModelFile, ...]] | None = None

    async def all(self) -> tuple[ModelFile, ...]:
        """All files with their digests, for which the model is read once, a second per GB.

        Raises:
            Invalid: a file cannot be read.
        """
        if self._listing is None or (self._listing.done() and self._listing.exception()):
            self._listing = asyncio.create_task(asyncio.to_thread(self._list))
        return await asyncio.shield(self._listing)

    async def read(self, name: str, offset: int, size: int) -> Piece:
        """A part of a file, shorter at its end. Raises Invalid if the model has no such file."""
        if name not in {file.name for file in await self.all()}:
            raise Invalid(f"the model has no file {name!r}")
        return Piece(await asyncio.to_thread(self._read, name, offset, size))

    def _list(self) -> tuple[ModelFile, ...]:
        paths = sorted(
            path
            for path in self.folder.iterdir()
            if path.is_file()
            and not path.name.startswith(".")
            and any(fnmatch(path.name, kind) for kind in KINDS)
        )
        try:
            found = digests.of(paths)
            return tuple(
                ModelFile(path.name, path.stat().st_size, digest)
                for path, digest in zip(paths, found, strict=True)
            )
        except OSError as error:
            raise Invalid(f"cannot read {error.filename}: {error.strerror}") from error

    def _read(self, name: str, offset: int, size: int) -> bytes:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise Invalid(f"cannot read {error.filename}: {error.strerror}") from error
