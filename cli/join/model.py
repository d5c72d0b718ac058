"""The model of a joining machine: its own files if they are the same, else those of the cluster."""

import asyncio
import hashlib
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path

from sps2.common import models, places
from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import Admission, ModelFile, ReadModel
from sps2.common.models import digests
from sps2.common.models.file_lock import alone

PIECE_BYTES = 2 << 20
AHEAD = 4
"""Pieces that are asked for before the first is there."""
PIECE_S = 30.0
TRIES = 5
PAUSE_S = 1.0
REST_BYTES = 256 << 20
"""Disk that is to stay free."""


def obtained(admission: Admission, cluster: Cluster, progress: models.Progress) -> Path:
    """The folder of the cluster's model on this machine; what is missing is fetched.

    Args:
        cluster: with the key, and the model as it is called where the cluster is.

    Raises:
        Invalid: there are other files under its name, or what came is damaged.
        Refused: the cluster was lost; what has come is kept for the next time.
    """
    named = Path(cluster.model)
    if named.is_absolute() and named.is_dir() and not differing(named, admission.files):
        return named
    folder = places.cache() / "models" / admission.model
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not folder.exists():
            work = folder.with_name(f".{folder.name}.arriving")
            work.mkdir(exist_ok=True)
            _fetch(admission.files, work, cluster, progress)
            models.validate(work)
            work.rename(folder)
    if odd := differing(folder, admission.files):
        raise Invalid(
            f"{folder} has other files than the cluster's model, namely {', '.join(odd)}: rename "
            "the folder, or remove it with `spsctl rm`, and join again"
        )
    return folder


def differing(folder: Path, files: tuple[ModelFile, ...]) -> list[str]:
    """Names of weights, configuration and tokenizer that are missing in `folder`, or different."""
    needed = [file for file in files if _matters(file)]
    same_size = [file for file in needed if _size(folder / file.name) == file.size]
    found = digests.of([folder / file.name for file in same_size]) if same_size else []
    same = {
        file.name for file, digest in zip(same_size, found, strict=True) if digest == file.digest
    }
    return [file.name for file in needed if file.name not in same]


def _matters(file: ModelFile) -> bool:
    return file.name in ("config.json", "tokenizer.json") or file.name.endswith(".safetensors")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


class Part:
    """A file that comes piece by piece: under its digest, until all of the model is there."""

    def __init__(self, file: ModelFile, work: Path) -> None:
        self.file = file
        self.path = work / f"{file.digest[:16]}.part"
        self.size = max(0, _size(self.path))
        self._digest = hashlib.sha256()

    def begin(self) -> None:
        """Go on behind what has come already, which is read for the digest."""
        with self.path.open("ab+") as file:
            file.seek(0)
            while data := file.read(PIECE_BYTES):
                self._digest.update(data)

    def add(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """Raises Invalid if the file does not have its digest."""
        if self._digest.hexdigest() != self.file.digest:
            self.path.unlink()
            raise Invalid(
                f"{self.file.name} came with another checksum than announced; it was changed "
                "there, or damaged here: join again"
            )


def _fetch(
    files: tuple[ModelFile, ...], work: Path, cluster: Cluster, progress: models.Progress
) -> None:
    """Fetch files into `work`. Raises as `obtained`."""
    parts = [Part(file, work) for file in files]
    for path in work.iterdir():
        if path not in {part.path for part in parts}:
            path.unlink()  # of an earlier model of this name
    missing = sum(part.file.size - part.size for part in parts)
    if (free := shutil.disk_usage(work).free) < missing + REST_BYTES:
        raise Invalid(f"{missing >> 20} MiB are needed at {work}, only {free >> 20} MiB are free")
    asyncio.run(_fill(parts, cluster, progress))
    for part in parts:
        part.path.rename(work / part.file.name)


async def _fill(parts: Sequence[Part], cluster: Cluster, progress: models.Progress) -> None:
    """Ask the joining service for what is missing."""
    peer = Peer(cluster.joining_address, cluster.bus, "the cluster", connect_s=PIECE_S)
    total = sum(part.file.size for part in parts)
    try:
        for part in parts:
            part.begin()
            async with aclosing(_pieces(peer, part.file, part.size)) as pieces:
                async for data in pieces:
                    part.add(data)
                    done = sum(part.size for part in parts)
                    progress("the model, from the cluster", done, total)
            part.finish()
    finally:
        await peer.close()


async def _pieces(peer: Peer, file: ModelFile, start: int) -> AsyncGenerator[bytes, None]:
    """The bytes of a file from `start` on, with several pieces under way at once."""

    def ask(offset: int) -> asyncio.Task[bytes]:
        return asyncio.create_task(_piece(peer, file, offset))

    offsets = iter(range(start, file.size, PIECE_BYTES))
    under_way = deque(map(ask, islice(offsets, AHEAD)))
    try:
        while under_way:
            yield await under_way[0]
            under_way.popleft()
            under_way.extend(map(ask, islice(offsets, 1)))
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _piece(peer: Peer, file: ModelFile, offset: int) -> bytes:
    lost: ServiceError | None = None
    for _ in range(TRIES):
        try:
            return (await peer.call(ReadModel(file.name, offset, PIECE_BYTES), PIECE_S)).data
        except (PeerLost, Cancelled) as error:
            lost = error
            await asyncio.sleep(PAUSE_S)
    raise Refused(
        f"the cluster was lost before all of the model had come ({lost}): join again; it goes on "
        "from there"
    )
