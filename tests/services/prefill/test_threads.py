"""Arithmetic runs with the threads that are lent, and afterwards with its own again."""

import pytest
import torch

from sps2.common.model.attend import inline
from sps2.services.prefill.threads import with_threads


@pytest.mark.parametrize(("lent", "used"), [(0, 1), (1, 1), (2, 2)])
async def test_threads_are_lent_for_each_piece(lent: int, used: int) -> None:
    run = with_threads(inline, lent)
    assert await run(torch.get_num_threads) == used
    assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError):
        await run(lambda: 1 / 0)
    assert torch.get_num_threads() == 1
