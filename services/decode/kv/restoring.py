"""Brings cached pages back from disk."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from sps2.services.decode.kv.cached import CachedPages
from sps2.services.decode.kv.disk import DiskPages


class Restoring:
    """Reads pages that are on disk only, each once, whoever wants it. On the data loop.

    Args:
        reserve, give_back: pages of the pool.
    """

    def __init__(
        self,
        cached: CachedPages,
        disk: DiskPages | None,
        reserve: Callable[[int], Awaitable[list[int]]],
        give_back: Callable[[Iterable[int]], None],
    ) -> None:
        self._cached = cached
        self._disk = disk
        self._reserve = reserve
        self._give_back = give_back
        self._reading: dict[bytes, asyncio.Future[None]] = {}
        """Pages that are read now, each with what is done when that is over."""

    async def restore(self, hashes: Mapping[int, bytes]) -> dict[int, int]:
        """Bring pages into memory, and cache them, unless they are cached already.

        Args:
            hashes: by page number.

        Returns:
            The pages that this call has reserved and read, by page number.

        Raises:
            Refused: one cannot be read, or too few pages are free.
        """
        while others := {self._reading[each] for each in hashes.values() if each in self._reading}:
            await asyncio.wait(others)
        wanted = {n: each for n, each in hashes.items() if self._cached.page_of(each) is None}
        if not wanted:
            return {}
        if self._disk is None:
            self._cached.miss(wanted.values())
            return {}
        done = asyncio.get_running_loop().create_future()
        self._reading |= dict.fromkeys(wanted.values(), done)
        reserved: list[int] = []
        try:
            reserved = await self._reserve(len(wanted))
            pages = dict(zip(wanted.values(), reserved, strict=True))
            self._cached.miss(await self._disk.read(pages))
            self._cached.add(pages)
        except BaseException:
            self._give_back(reserved)
            raise
        finally:
            for each in wanted.values():
                del self._reading[each]
            done.set_result(None)
        return dict(zip(wanted, reserved, strict=True))
