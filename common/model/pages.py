"""The KV pool of one decode shard: pages, taken for requests, shared and given back."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sps2.common.errors import Refused
from sps2.common.model.config import ModelConfig
from sps2.kernels import Run, Scales
from sps2.kernels.append import append


def page_bytes(config: ModelConfig, page_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers, the scales of int8 included."""
    scales = 2 * config.layers * config.kv_heads * 4 if dtype == torch.int8 else 0
    return page_tokens * (config.kv_bytes(dtype.itemsize) + scales)


class SequencePages:
    """Pages of one request on this shard: number `n` holds the positions from n * page_tokens on.

    Args:
        table: page of the pool by number; whoever gives it keeps them taken.
    """

    def __init__(self, pool: "PagePool", table: Mapping[int, int]) -> None:
        self.table = dict(sorted(table.items()))
        self._pool = pool
        self._ranges = _ranges(self.table)

    def slot(self, position: int) -> int:
        """Where the keys and values of a position lie in the pool."""
        page, offset = divmod(position, self._pool.page_tokens)
        return self.table[page] * self._pool.page_tokens + offset

    def runs(self, stop: int, start: int = 0) -> list[Run]:
        """The positions from `start` to `stop` that lie here, as runs of consecutive slots."""
        runs = []
        tokens = self._pool.page_tokens
        for number, page, pages in self._ranges:
            first = number * tokens
            begin, end = max(start, first), min(stop, first + pages * tokens)
            if begin < end:
                runs.append(Run(page * tokens + begin - first, begin, end - begin))
        return runs

    def write(self, layer: int, start: int, k: Tensor, v: Tensor, head: int = 0) -> None:
        """Put k and v, [tokens, heads, head_dim], at positions from `start`, heads from `head`."""
        heads = slice(head, head + k.shape[1])
        for run in self.runs(start + k.shape[0], start):
            rows = slice(run.start - start, run.start - start + run.tokens)
            slots = slice(run.slot, run.slot + run.tokens)
            self._pool.put(layer, (slots, heads), k[rows], v[rows])


class PagePool:
    """One allocation for all layers; memory is touched as pages are first used.

    Args:
        pages: how many pages of `page_tokens` tokens.
        dtype: the model's, or int8.
        device: where the pages lie.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self.device = torch.device(device)
        shape = (config.layers, 2, config.kv_heads, pages * page_tokens, config.head_dim)
        self._storage = torch.empty(shape, dtype=dtype, device=device)
        self._layers = [
            (layer[0].transpose(0, 1), layer[1].transpose(0, 1)) for layer in self._storage
        ]
        self._scales: list[Scales] = []
        if dtype == torch.int8:
            scales = torch.empty(shape[:-1], device=device)
            self._scales = [(layer[0].T, layer[1].T) for layer in scales]
        self._users = [0] * pages
        self._backed = [False] * pages
        self.free_pages = pages
        self.counters: Counter[str] = Counter()
        """`decode_keys` that decode steps attended to in each layer, and `decode_keys_read`: keys
        that requests of a batch share are attended to for each, and read once."""

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of one layer's keys and values, [slots, kv_heads, head_dim]."""
        return self._layers[layer]

    def scales(self, layer: int) -> Scales | None:
        """Of one layer's keys and values in int8: views, [slots, kv_heads]."""
        return self._scales[layer] if self._scales else None

    def put(self, layer: int, where: Tensor | tuple[slice, slice], k: Tensor, v: Tensor) -> None:
        """Put k and v, in the model's dtype, into slots, or into some KV heads of slots.

        Args:
            where: [rows] for k and v [rows, kv_heads, head_dim], or slices of slots and KV heads.
        """
        append(k, v, *self._layers[layer], where, self.scales(layer))

    def take(self, pages: int) -> list[int]:
        """Take free pages, each with one user; in one range where possible.

        Raises:
            Refused: fewer are free.
        """
        if pages > self.free_pages:
            raise Refused(f"{pages} KV pages are needed, {self.free_pages} are free")
        taken = self._next(pages)
        for page in taken:
            self._users[page] = 1
        self.free_pages -= pages
        return taken

    def ahead(self, pages: int) -> list[Tensor]:
        """The memory of the pages that would be taken next: contiguous tensors, each page once.

        Args:
            pages: at most so many, and fewer where fewer are free.
        """
        new = [page for page in self._next(min(pages, self.free_pages)) if not self._backed[page]]
        for page in new:
            self._backed[page] = True
        runs = [
            slice(page * self.page_tokens, (page + many) * self.page_tokens)
            for _, page, many in _ranges(dict(zip(new, new, strict=True)))
        ]
        flat = self._storage.flatten(0, 2)
        return [rows[run] for run in runs for rows in flat]

    def share(self, pages: Iterable[int]) -> None:
        """One more user of pages that are taken."""
        for page in pages:
            assert self._users[page], f"page {page} is not taken"
            self._users[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """One user less of pages, which it must not use any more; they are free after the last."""
        for page in pages:
            assert self._users[page], f"page {page} was given back already"
            self._users[page] -= 1
            self.free_pages += not self._users[page]

    def users_of(self, pages: Iterable[int]) -> list[int]:
        """How many users each of the pages has; safe to call from another thread."""
        return [self._users[page] for page in pages]

    def _next(self, pages: int) -> list[int]:
        return (
            self._free_range(pages)
            or [page for page, users in enumerate(self._users) if not users][:pages]
        )

    def _free_range(self, pages: int) -> list[int]:
        """The first range of that many free pages; empty if there is none."""
        length = 0
        for page, users in enumerate(self._users):
            length = 0 if users else length + 1
            if length == pages:
                return list(range(page - pages + 1, page + 1))
        return []


def _ranges(table: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Consecutive numbers on consecutive pages put together: (first number, first page, pages)."""
    found: list[tuple[int, int, int]] = []
    for number, page in table.items():
        if found and (number, page) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((number, page, 1))
    return found
