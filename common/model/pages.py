"""The KV pool of a shard: pages that requests reserve, share and free."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sps2.common.errors import Refused
from sps2.common.model.config import ModelConfig
from sps2.kernels import Run, Scales
from sps2.kernels.append import append


def page_bytes(config: ModelConfig, page_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers, int8 scales included."""
    scales = 2 * config.layers * config.kv_heads * 4 if dtype == torch.int8 else 0
    return page_tokens * (config.kv_bytes(dtype.itemsize) + scales)


class SequencePages:
    """The pages of a request on this shard: number `n` holds positions from n * page_tokens on.

    Args:
        table: page of the pool by number; the caller keeps these pages reserved.
    """

    def __init__(self, pool: "PagePool", table: Mapping[int, int]) -> None:
        self.table = dict(sorted(table.items()))
        self._pool = pool
        self._ranges = _ranges(self.table)

    def add(self, table: Mapping[int, int]) -> None:
        """Add pages by number; the caller keeps them reserved."""
        self.table = dict(sorted({**self.table, **table}.items()))
        self._ranges = _ranges(self.table)

    def has(self, position: int) -> bool:
        """Whether a position has a page here."""
        return position // self._pool.page_tokens in self.table

    def slot(self, position: int) -> int:
        """The slot of a position's keys and values in the pool."""
        page, offset = divmod(position, self._pool.page_tokens)
        return self.table[page] * self._pool.page_tokens + offset

    def runs(self, stop: int, start: int = 0) -> list[Run]:
        """The positions from `start` to `stop` that are here, as runs of consecutive slots."""
        runs = []
        tokens = self._pool.page_tokens
        for number, page, pages in self._ranges:
            first = number * tokens
            begin, end = max(start, first), min(stop, first + pages * tokens)
            if begin < end:
                runs.append(Run(page * tokens + begin - first, begin, end - begin))
        return runs

    def write(self, layer: int, start: int, k: Tensor, v: Tensor, head: int = 0) -> None:
        """Write k and v, [tokens, heads, head_dim], from position `start` and head `head` on."""
        heads = slice(head, head + k.shape[1])
        for run in self.runs(start + k.shape[0], start):
            rows = slice(run.start - start, run.start - start + run.tokens)
            slots = slice(run.slot, run.slot + run.tokens)
            self._pool.put(layer, (slots, heads), k[rows], v[rows])


class PagePool:
    """All pages of a shard in one allocation; memory is touched when pages are first used.

    Args:
        pages: number of pages of `page_tokens` tokens.
        dtype: the model's, or int8.
        device: of the pages.
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
        self._stored = [self._storage]
        if dtype == torch.int8:
            scales = torch.empty(shape[:-1], device=device)
            self._scales = [(layer[0].T, layer[1].T) for layer in scales]
            self._stored.append(scales)
        self._users = [0] * pages
        self._backed = [False] * pages
        self.free_pages = pages
        self.counters: Counter[str] = Counter()
        """`decode_keys` counts keys that decode steps attended to, per layer. `decode_keys_read`
        counts a key once that several requests of a batch share."""

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of one layer's keys and values, [slots, kv_heads, head_dim]."""
        return self._layers[layer]

    def scales(self, layer: int) -> Scales | None:
        """Views of one layer's int8 scales, [slots, kv_heads]; None if the pool is not int8."""
        return self._scales[layer] if self._scales else None

    def put(self, layer: int, where: Tensor | tuple[slice, slice], k: Tensor, v: Tensor) -> None:
        """Write k and v, in the model's dtype, into slots, or into some KV heads of slots.

        Args:
            where: [rows] for k and v [rows, kv_heads, head_dim], or slices of slots and KV heads.
        """
        append(k, v, *self._layers[layer], where, self.scales(layer))

    @property
    def payload_bytes(self) -> int:
        """Bytes of a page's `payload`."""
        return sum(each.nbytes for each in self._stored) // self.pages

    def payload(self, page: int) -> Tensor:
        """A copy of a page, as bytes on the host: keys and values, then int8 scales.

        Both are [layers, 2, kv_heads, page_tokens, ...]. It may be called from another thread while
        the page has a user and is full.
        """
        slots = slice(page * self.page_tokens, (page + 1) * self.page_tokens)
        parts = [each[:, :, :, slots].contiguous().cpu() for each in self._stored]
        return torch.cat([part.flatten().view(torch.uint8) for part in parts])

    def fill(self, page: int, payload: Tensor) -> None:
        """Write what `payload` returned into a reserved page; may be called from another thread."""
        slots = slice(page * self.page_tokens, (page + 1) * self.page_tokens)
        start = 0
        for each in self._stored:
            there = each[:, :, :, slots]
            stop = start + there.numel() * each.itemsize
            part = payload[start:stop].clone()  # aligned, as `view` needs it
            there.copy_(part.view(each.dtype).view(there.shape))
            start = stop

    def take(self, pages: int) -> list[int]:
        """Reserve free pages, each for one user; in one range if possible.

        Raises:
            Refused: fewer pages are free.
        """
        if pages > self.free_pages:
            raise Refused(f"{pages} KV pages are needed, {self.free_pages} are free")
        reserved = self._next(pages)
        for page in reserved:
            self._users[page] = 1
        self.free_pages -= pages
        return reserved

    def ahead(self, pages: int) -> list[Tensor]:
        """The memory of the pages that `take` would return next, as contiguous tensors.

        Each page is returned once only.

        Args:
            pages: the most pages to return; fewer if fewer are free.
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
        """Add a user to reserved pages."""
        for page in pages:
            assert self._users[page], f"page {page} is not reserved"
            self._users[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Remove a user, which must not use the pages any more; the last one frees them."""
        for page in pages:
            assert self._users[page], f"page {page} is free already"
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
    """Ranges of consecutive numbers on consecutive pages: (first number, first page, pages)."""
    found: list[tuple[int, int, int]] = []
    for number, page in table.items():
        if found and (number, page) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((number, page, 1))
    return found
