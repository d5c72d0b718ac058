"""Pages are taken, written, read in runs and given back, and never shared."""

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


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_page_is_taken_twice_or_lost(steps: list[tuple[bool, int]]) -> None:
    pool = pool_of(16)
    held: list[SequencePages] = []
    for give, amount in steps:
        if give and held:
            pool.give_back(held.pop(amount % len(held)))
        elif amount > pool.free_pages:
            with pytest.raises(Refused):
                pool.take(amount, 0)
        else:
            held.append(pool.take(amount, 0))
        ids = [page for taken in held for page in taken.ids]
        assert len(set(ids)) == len(ids)
        assert pool.free_pages == 16 - len(ids)


def test_pages_come_in_one_stretch_where_there_is_one() -> None:
    pool = pool_of(10)
    first, second, _third = pool.take(2, 0), pool.take(3, 0), pool.take(1, 0)
    pool.give_back(first)
    assert pool.take(4, 0).ids == (6, 7, 8, 9)
    pool.give_back(second)
    assert pool.take(5, 100).runs(117) == [(0, 100, 17)]


def test_scattered_pages_become_several_runs() -> None:
    pool = pool_of(6)
    taken = [pool.take(1, 0) for _ in range(6)]
    for page in (0, 1, 3, 5):
        pool.give_back(taken[page])
    scattered = pool.take(4, 50)
    assert scattered.runs(50 + 14) == [(0, 50, 8), (12, 58, 4), (20, 62, 2)]
    assert scattered.runs(50) == []
    assert scattered.slot(57) == 7
    assert scattered.slot(58) == 12


@given(start=st.integers(0, 30), skip=st.integers(0, 20), tokens=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(start: int, skip: int, tokens: int) -> None:
    pool = pool_of(21)
    for page in [pool.take(1, 0) for _ in range(21)][::2]:
        pool.give_back(page)
    taken = pool.take(10, start)
    shape = (tokens, CONFIG.kv_heads, CONFIG.head_dim)
    k, v = torch.randn(shape), torch.randn(shape)
    taken.write(1, start + skip, k, v)
    keys, values = pool.layer(1)
    written = slots(taken, start + skip + tokens)[skip:]
    assert torch.equal(keys[written], k)
    assert torch.equal(values[written], v)
    assert [taken.slot(start + skip + at) for at in range(tokens)] == written


def test_a_batch_appends_one_token_each() -> None:
    pool = pool_of(4)
    first, second = pool.take(2, 10), pool.take(2, 0)
    where = torch.tensor([first.slot(13), second.slot(5)])
    k, v = torch.randn(2, 2, CONFIG.kv_heads, CONFIG.head_dim)
    pool.append(0, where, k, v)
    keys, values = pool.layer(0)
    assert torch.equal(keys[where], k)
    assert torch.equal(values[where], v)


def test_the_size_of_a_page_is_that_of_its_tensors() -> None:
    pool = pool_of(3)
    kept = sum(tensor.nbytes for layer in range(CONFIG.layers) for tensor in pool.layer(layer))
    assert kept == 3 * page_bytes(CONFIG, PAGE, torch.float32)
