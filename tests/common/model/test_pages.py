"""Pages are taken, written, read in runs, shared, and free after their last user."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.errors import Refused
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.pages import PagePool, SequencePages, page_bytes

PAGE = 4


CONFIG = ModelConfig(
    family="llama",
    vocab_size=10,
    hidden_size=32,
    intermediate_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    max_context=100,
    norm_eps=1e-5,
    rope=Rope(),
    windows=(None, None),
)


def pool_of(pages: int) -> PagePool:
    return PagePool(CONFIG, pages, PAGE, torch.float32)


def slots(taken: SequencePages, stop: int) -> list[int]:
    return [run.slot + offset for run in taken.runs(stop) for offset in range(run.tokens)]


def pages_of(pool: PagePool, start: int, *pages: int) -> SequencePages:
    return SequencePages(pool, dict(enumerate(pages, start)))


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "give"]), st.integers(0, 9))))
@settings(max_examples=60, deadline=None)
def test_no_page_is_taken_twice_or_lost(steps: list[tuple[str, int]]) -> None:
    pool = pool_of(16)
    held: list[list[int]] = []
    for step, amount in steps:
        if step == "give" and held:
            pool.give_back(held.pop(amount % len(held)))
        elif step == "share" and held:
            held.append(held[amount % len(held)])
            pool.share(held[-1])
        elif amount > pool.free_pages:
            with pytest.raises(Refused):
                pool.take(amount)
        else:
            taken = pool.take(amount)
            assert not {page for pages in held for page in pages} & set(taken)
            held.append(taken)
        assert pool.free_pages == 16 - len({page for pages in held for page in pages})


def test_pages_come_in_one_range_where_there_is_one() -> None:
    pool = pool_of(10)
    first, second, _third = pool.take(2), pool.take(3), pool.take(1)
    pool.give_back(first)
    assert pool.take(4) == [6, 7, 8, 9]
    pool.give_back(second)
    assert pages_of(pool, 25, *pool.take(5)).runs(117) == [(0, 100, 17)]


def test_scattered_pages_become_several_runs() -> None:
    scattered = pages_of(pool_of(6), 12, 0, 1, 3, 5)
    assert scattered.runs(48 + 14) == [(0, 48, 8), (12, 56, 4), (20, 60, 2)]
    assert scattered.runs(48) == []
    assert scattered.slot(55) == 7
    assert scattered.slot(56) == 12


def test_a_sequence_may_lie_here_in_several_spans() -> None:
    spread = SequencePages(pool_of(9), {7: 3, 0: 4, 1: 5, 8: 8})
    assert spread.runs(34) == [(16, 0, 8), (12, 28, 4), (32, 32, 2)]
    assert spread.runs(6) == [(16, 0, 6)]


@given(start=st.integers(0, 8), skip=st.integers(0, 20), tokens=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(start: int, skip: int, tokens: int) -> None:
    pool = pool_of(21)
    pool.take(21)
    pool.give_back(range(0, 21, 2))
    taken = pages_of(pool, start, *pool.take(10))
    first = start * PAGE + skip
    shape = (tokens, CONFIG.kv_heads, CONFIG.head_dim)
    k, v = torch.randn(shape), torch.randn(shape)
    taken.write(1, first, k, v)
    keys, values = pool.layer(1)
    written = slots(taken, first + tokens)[skip:]
    assert torch.equal(keys[written], k)
    assert torch.equal(values[written], v)
    assert [taken.slot(first + at) for at in range(tokens)] == written


def test_a_batch_appends_one_token_each() -> None:
    pool = pool_of(4)
    first, second = pages_of(pool, 3, *pool.take(2)), pages_of(pool, 0, *pool.take(2))
    where = torch.tensor([first.slot(13), second.slot(5)])
    k, v = torch.randn(2, 2, CONFIG.kv_heads, CONFIG.head_dim)
    pool.put(0, where, k, v)
    keys, values = pool.layer(0)
    assert torch.equal(keys[where], k)
    assert torch.equal(values[where], v)


def test_the_size_of_a_page_is_that_of_its_tensors() -> None:
    pool = pool_of(3)
    kept = sum(tensor.nbytes for layer in range(CONFIG.layers) for tensor in pool.layer(layer))
    assert kept == 3 * page_bytes(CONFIG, PAGE, torch.float32)


@given(skip=st.integers(0, 20), tokens=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_what_is_written_in_eight_bits_is_read_within_half_a_step(skip: int, tokens: int) -> None:
    pool = PagePool(CONFIG, 12, PAGE, torch.int8)
    taken = pages_of(pool, 0, *pool.take(12))
    shape = (tokens, CONFIG.kv_heads, CONFIG.head_dim)
    k, v = torch.randn(shape), torch.randn(shape)
    taken.write(1, skip, k, v)
    written = slots(taken, skip + tokens)[skip:]
    scales = pool.scales(1)
    assert scales is not None
    for x, levels, scale in zip((k, v), pool.layer(1), scales, strict=True):
        step = scale[written][..., None]
        assert bool(((levels[written] * step - x).abs() <= step * 0.501).all())


def test_the_size_of_a_page_in_eight_bits_counts_its_scales() -> None:
    pool = PagePool(CONFIG, 3, PAGE, torch.int8)
    kept = 0
    for layer in range(CONFIG.layers):
        scales = pool.scales(layer)
        assert scales is not None
        kept += sum(tensor.nbytes for tensor in (*pool.layer(layer), *scales))
    assert kept == 3 * page_bytes(CONFIG, PAGE, torch.int8)


def test_memory_ahead_is_that_of_the_pages_taken_next_each_once() -> None:
    pool = pool_of(8)
    pool.take(1)

    def pages(ahead: list[torch.Tensor]) -> set[int]:
        for piece in ahead:
            assert piece.is_contiguous()
            piece.fill_(1)
        keys, values = pool.layer(1)
        written = [bool(keys[page * PAGE :][:PAGE].all()) for page in range(8)]
        assert written == [bool(values[page * PAGE :][:PAGE].all()) for page in range(8)]
        return {page for page, there in enumerate(written) if there}

    for layer in range(CONFIG.layers):
        for x in pool.layer(layer):
            x.zero_()
    assert pages(pool.ahead(3)) == {1, 2, 3}
    assert pool.ahead(3) == []
    assert pages(pool.ahead(4)) == {1, 2, 3, 4}
    pool.take(3)
    assert pages(pool.ahead(100)) == set(range(1, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_page_can_be_moved_as_bytes(dtype: torch.dtype) -> None:
    one, other = (PagePool(CONFIG, 4, PAGE, dtype) for _ in range(2))
    written = pages_of(one, 0, *one.take(3))
    work = torch.float32 if dtype == torch.int8 else dtype
    for layer in range(CONFIG.layers):
        written.write(layer, 0, *torch.randn(2, 3 * PAGE, 2, 8, dtype=work))
    payload = one.payload(1)
    assert payload.nbytes == one.payload_bytes == page_bytes(CONFIG, PAGE, dtype)
    _, there = other.take(2)
    before = other.payload(0)
    other.fill(there, payload)
    assert torch.equal(other.payload(there), payload)
    assert torch.equal(other.payload(0), before)
    for layer in range(CONFIG.layers):
        for mine, theirs in zip(one.layer(layer), other.layer(layer), strict=True):
            assert torch.equal(mine[PAGE : 2 * PAGE], theirs[there * PAGE : (there + 1) * PAGE])
        for scales, copies in zip(one.scales(layer) or (), other.scales(layer) or (), strict=True):
            assert torch.equal(scales[PAGE : 2 * PAGE], copies[PAGE * there : PAGE * (there + 1)])
