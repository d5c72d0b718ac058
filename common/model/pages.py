"""The KV pool of one decode shard: pages, taken for a request's span and given back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.common.errors import Refused
from sps2.common.model.config import ModelConfig
from sps2.kernels import Run


def page_bytes(config: ModelConfig, page_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return page_tokens * config.kv_bytes(dtype.itemsize)


class SequencePages:
    """Pages of one request on this shard, for consecutive positions from `start` on."""

    def __init__(self, pool: "PagePool", start: int, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._pool = pool
        self._start = start
        self._stretches = _stretches(self.ids)

    @property
    def pages(self) -> int:
        return len(self.ids)

    def slot(self, position: int) -> int:
        """Where the keys and values of a position lie in the pool."""
        page, offset = divmod(position - self._start, self._pool.page_tokens)
        return self.ids[page] * self._pool.page_tokens + offset

    def runs(self, stop: int) -> list[Run]:
        """The positions from the first up to `stop`, as runs of consecutive slots."""
        return self._between(self._start, stop)

    def write(self, layer: int, start: int, k: Tensor, v: Tensor, head: int = 0) -> None:
        """Put k and v, [tokens, heads, head_dim], at positions from `start`, heads from `head`."""
        keys, values = self._pool.layer(layer)
        for run in self._between(start, start + k.shape[0]):
            rows = slice(run.start - start, run.start - start + run.tokens)
            slots = slice(run.slot, run.slot + run.tokens)
            heads = slice(head, head + k.shape[1])
            keys[slots, heads], values[slots, heads] = k[rows], v[rows]

    def _between(self, start: int, stop: int) -> list[Run]:
        runs = []
        first = self._start
        for page, pages in self._stretches:
            last = first + pages * self._pool.page_tokens
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                runs.append(Run(page * self._pool.page_tokens + begin - first, begin, end - begin))
            first = last
        return runs


class PagePool:
    """One allocation for all layers; memory is touched as pages are first used.

    Args:
        pages: how many pages of `page_tokens` tokens.
    """

    def __init__(
        self, config: ModelConfig, pages: int, page_tokens: int, dtype: torch.dtype
    ) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        shape = (config.layers, 2, config.kv_heads, pages * page_tokens, config.head_dim)
        self._storage = torch.empty(shape, dtype=dtype)
        self._layers = [
            (layer[0].transpose(0, 1), layer[1].transpose(0, 1)) for layer in self._storage
        ]
        self._free = [True] * pages
        self.free_pages = pages

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of one layer's keys and values, [slots, kv_heads, head_dim]."""
        return self._layers[layer]

    def append(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put one token per row of k and v, [rows, kv_heads, head_dim], into `slots`, [rows]."""
        keys, values = self._layers[layer]
        keys[slots], values[slots] = k, v

    def take(self, pages: int, start: int) -> SequencePages:
        """Take pages for a span that begins at position `start`; in one stretch where possible.

        Raises:
            Refused: fewer are free.
        """
        if pages > self.free_pages:
            raise Refused(f"{pages} KV pages are needed, {self.free_pages} are free")
        ids = self._stretch(pages) or [page for page, free in enumerate(self._free) if free][:pages]
        for page in ids:
            self._free[page] = False
        self.free_pages -= pages
        return SequencePages(self, start, ids)

    def give_back(self, taken: SequencePages) -> None:
        """Free the pages of a request; they must not be used any more."""
        for page in taken.ids:
            assert not self._free[page], f"page {page} was given back already"
            self._free[page] = True
        self.free_pages += taken.pages

    def _stretch(self, pages: int) -> list[int]:
        """The first stretch of that many free pages; empty if there is none."""
        length = 0
        for page, free in enumerate(self._free):
            length = length + 1 if free else 0
            if length == pages:
                return list(range(page - pages + 1, page + 1))
        return []


def _stretches(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive pages put together: (first page, how many)."""
    found: list[tuple[int, int]] = []
    for page in ids:
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
