"""Bans hold for every token of an answer, whoever draws it."""

import pytest
import torch

from sps2.common.errors import Invalid
from sps2.common.messages import Sampling
from sps2.common.model.sampler import Sampler

VOCAB = 8
RISING = torch.arange(VOCAB, dtype=torch.float32)
"""Logits whose most likely token is the last."""


def drawn(sampling: Sampling, count: int, prompt: tuple[int, ...] = (1, 2)) -> list[int]:
    sampler = Sampler(sampling, torch.tensor(prompt))
    return [sampler.next(RISING, sampling.answered + index).id for index in range(count)]


def test_only_allowed_tokens_are_drawn() -> None:
    greedy = Sampling(9, 0, temperature=0, allowed_token_ids=(3, 0, 5, VOCAB + 1))
    assert drawn(greedy, 2) == [5, 5]
    warm = Sampling(90, 0, temperature=2, allowed_token_ids=(3, 0))
    assert set(drawn(warm, 60)) == {3, 0}


def test_a_bad_word_of_one_token_is_never_drawn() -> None:
    assert drawn(Sampling(9, 0, temperature=0, bad_words=((7,), (6,))), 2) == [5, 5]


def test_the_last_token_of_a_bad_word_is_not_drawn_after_the_others() -> None:
    sampling = Sampling(9, 0, temperature=0, bad_words=((7, 7), (7, 6, 7, 5)))
    assert drawn(sampling, 6) == [7, 6, 7, 6, 7, 6]
    sampling = Sampling(9, 0, temperature=0, bad_words=((7, 7), (7, 6, 7, 6)))
    assert drawn(sampling, 5) == [7, 6, 7, 5, 7]


def test_a_bad_word_is_not_begun_by_the_prompt() -> None:
    sampling = Sampling(9, 0, temperature=0, bad_words=((7, 7),))
    assert drawn(sampling, 2, prompt=(1, 7)) == [7, 6]


def test_an_answer_that_goes_on_elsewhere_has_its_bans() -> None:
    sampling = Sampling(9, 0, temperature=0, bad_words=((7, 7),), answered=1)
    assert drawn(sampling, 2, prompt=(1, 7)) == [6, 7]


def test_no_token_may_be_left() -> None:
    sampling = Sampling(9, 0, temperature=0, allowed_token_ids=(3,), bad_words=((3,),))
    with pytest.raises(Invalid, match="banned"):
        drawn(sampling, 1)
