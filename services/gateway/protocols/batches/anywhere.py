"""Files and batches, here or at the gateway that made them, whose number their ids have.

All gateways run on one machine, so each can read the files of the others.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from sps2.common.messages import Done, Request, Struct
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.protocols.batches.runner import Batches
from sps2.services.gateway.protocols.batches.shapes import Batch, File
from sps2.services.gateway.protocols.batches.store import Stored

T = TypeVar("T", File, Batch)


class FoundFile(Struct, frozen=True):
    file: File
    path: str


class FindFile(Request[FoundFile], frozen=True):
    """Gateway to gateway: return a file of an owner. Invalid if there is none."""

    name: str
    owner: str


class DropFile(Request[Done], frozen=True):
    """Gateway to gateway: remove a file of an owner. Invalid if there is none."""

    name: str
    owner: str


class FileList(Struct, frozen=True):
    files: tuple[File, ...]


class ListFiles(Request[FileList], frozen=True):
    """Gateway to gateway: list the files of an owner, the newest first."""

    owner: str


class FindBatch(Request[Batch], frozen=True):
    """Gateway to gateway: return a batch of an owner, or `cancel` it. Invalid if there is none."""

    name: str
    owner: str
    cancel: bool


class Batched(Struct, frozen=True):
    batches: tuple[Batch, ...]


class ListBatches(Request[Batched], frozen=True):
    """Gateway to gateway: list the batches of an owner, the newest first."""

    owner: str


class Anywhere:
    """The files and batches of all gateways; each method raises PeerLost if one is away that is
    needed.

    Attributes:
        here: the batches of this gateway, with its files.
    """

    def __init__(self, here: Batches, others: Others) -> None:
        self.here = here
        self._others = others

    async def file(self, name: str, owner: str) -> Stored:
        """A file. Raises Invalid if this client has none of that name."""
        holder = self._others.holder(name)
        if holder is None:
            return self.here.store.get(name, owner)
        found = await self._others.call(holder, FindFile(name, owner))
        return Stored(found.file, owner, Path(found.path))

    async def drop_file(self, request: DropFile) -> Done:
        """Remove a file. Raises Invalid as `file` does."""
        holder = self._others.holder(request.name)
        if holder is not None:
            return await self._others.call(holder, request)
        self.here.store.delete(request.name, request.owner)
        return Done()

    async def files(self, owner: str) -> list[File]:
        """The files of a client, the newest first."""
        own, asked = FileList(tuple(self.here.store.files(owner))), ListFiles(owner)
        lists = await self._others.all(own, asked)
        return _merged((each.files for each in lists), lambda file: file.created_at)

    async def batch(self, request: FindBatch) -> Batch:
        """A batch, which is cancelled if that is requested. Raises Invalid if there is none."""
        holder = self._others.holder(request.name)
        if holder is not None:
            return await self._others.call(holder, request)
        if request.cancel:
            return self.here.cancel(request.name, request.owner)
        return self.here.job(request.name, request.owner).shown

    async def batches(self, owner: str) -> list[Batch]:
        """The batches of a client, the newest first."""
        own, asked = Batched(tuple(self.here.batches(owner))), ListBatches(owner)
        lists = await self._others.all(own, asked)
        return _merged((each.batches for each in lists), lambda batch: batch.created_at)

    async def find_file(self, request: FindFile) -> FoundFile:
        found = self.here.store.get(request.name, request.owner)
        return FoundFile(found.file, str(found.path))

    async def list_files(self, request: ListFiles) -> FileList:
        return FileList(tuple(self.here.store.files(request.owner)))

    async def list_batches(self, request: ListBatches) -> Batched:
        return Batched(tuple(self.here.batches(request.owner)))


def _merged(lists: Iterable[Iterable[T]], made_at: Callable[[T], int]) -> list[T]:
    """One list of several, the newest first; all gateways order it alike."""
    return sorted((each for found in lists for each in found), key=made_at, reverse=True)
