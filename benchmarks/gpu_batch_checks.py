"""Attention of batches on a device beside its definition: decoding, shared prefixes."""

from collections.abc import Iterator

import torch
from gpu_compare import LIMIT, Check, Shapes, definition, eight_bits, of_state, short, tensors
from torch import Tensor

from sps2.kernels import PagedRows, Run, State, paged_attention


def run(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    yield from _decode(device, shapes)
    yield from _relay(device, shapes)


def _decode(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    lengths = [3000, 0, 1, 700]
    for page in (16, 64):
        for dim, compute in shapes:
            for dtype in (compute, torch.int8) if compute == torch.bfloat16 else (compute,):
                pages = [-(-length // page) for length in lengths]
                order = torch.randperm(sum(pages)).tolist()
                q, k, v = tensors(len(lengths), sum(pages) * page, dim, compute, device)
                scales, whole = None, (k, v)
                if dtype == torch.int8:
                    k, v, scales, whole = eight_bits(k, v)
                runs = [
                    [
                        Run(order.pop() * page, number * page, min(page, length - number * page))
                        for number in range(count)
                    ]
                    for count, length in zip(pages, lengths, strict=True)
                ]
                rows = PagedRows(runs, [length - 1 for length in lengths])
                got = paged_attention(q, k, v, rows, scales=scales)
                wanted = [
                    _decoded(q[row : row + 1], whole, own, length)
                    for row, (own, length) in enumerate(zip(runs, lengths, strict=True))
                ]
                want = State(*(torch.cat(each) for each in zip(*wanted, strict=True)))
                name = f"decode {dim} {short(dtype)} pages of {page}"
                yield name, of_state(got, want), LIMIT[compute]


def _decoded(q: Tensor, whole: tuple[Tensor, Tensor], own: list[Run], length: int) -> State:
    slots = torch.tensor([run.slot + at for run in own for at in range(run.tokens)]).long()
    if not length:
        return State(torch.zeros(q.shape), torch.full(q.shape[:2], -torch.inf))
    at = torch.tensor([length - 1])
    return definition(q, whole[0][slots], whole[1][slots], at, torch.arange(length))


def _sharing(rows: int, common: int, own: int) -> tuple[list[list[Run]], list[int], int]:
    """Rows that begin with the same keys, and go on each for itself; positions, slots."""
    runs = [[Run(0, 0, common), Run(common + row * own, common, own - row)] for row in range(rows)]
    return runs, [common + own - row - 1 for row in range(rows)], common + rows * own


def _relay(device: torch.device, shapes: Shapes) -> Iterator[Check]:
    runs, positions, slots = _sharing(20, 1500, 70)
    for dim, dtype in shapes:
        limit = LIMIT[dtype]
        q, k, v = tensors(len(runs), slots, dim, dtype, device)
        got = paged_attention(q, k, v, PagedRows(runs, positions))
        want = _all_decoded(q, (k, v), runs, positions)
        yield f"relay {dim} {short(dtype)}", of_state(got, want), limit


def _all_decoded(
    q: Tensor, whole: tuple[Tensor, Tensor], runs: list[list[Run]], positions: list[int]
) -> State:
    """Of no rows: nothing."""
    states = [State(q.cpu().float()[:0], q.cpu().float()[:0, :, 0])]
    for row, (own, at) in enumerate(zip(runs, positions, strict=True)):
        states.append(_decoded(q[row : row + 1], whole, own, at + 1))
    return State(*(torch.cat(each) for each in zip(*states, strict=True)))
