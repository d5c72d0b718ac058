"""Sampling follows the parameters' definitions, and repeats itself exactly."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sps2.common.errors import Invalid, Unsound
from sps2.common.messages import Sampling, Token
from sps2.common.model.sampler import Sampler, draw, needed, prompt_logprobs

VOCAB = 50
NO_PROMPT = torch.zeros(0, dtype=torch.int64)


def sampler(prompt: Tensor = NO_PROMPT, **options: Any) -> Sampler:
    settings: dict[str, Any] = {"max_tokens": 1000, "seed": 7, "temperature": 0.0}
    return Sampler(Sampling(**(settings | options)), prompt)


def logits(*best: tuple[int, float]) -> Tensor:
    row = torch.full((VOCAB,), -1.0)
    for token, value in best:
        row[token] = value
    return row


def drawn(row: Tensor, count: int = 300, **options: Any) -> Counter[int]:
    chooser = sampler(**({"temperature": 1.0} | options))
    return Counter(chooser.next(row, index).id for index in range(count))


def test_temperature_0_takes_the_best() -> None:
    assert sampler().next(logits((3, 1.0), (9, 2.0)), 0).id == 9


def test_frequencies_follow_the_probabilities() -> None:
    row = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    found = drawn(row, 4000)
    for token, share in enumerate((0.5, 0.25, 0.15, 0.1)):
        assert abs(found[token] / 4000 - share) < 0.03


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_seed_and_index_alone(seed: int, index: int) -> None:
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    fresh = sampler(seed=seed, temperature=1.0)
    used = sampler(seed=seed, temperature=1.0)
    for earlier in range(3):
        used.next(row, earlier)
    torch.manual_seed(index)
    assert fresh.next(row, index).id == used.next(row, index).id


def test_other_seeds_and_indices_draw_otherwise() -> None:
    row = torch.zeros(VOCAB)
    assert len(drawn(row, 200)) > 40
    by_seed = {sampler(seed=seed, temperature=1.0).next(row, 0).id for seed in range(200)}
    assert len(by_seed) > 40


def test_temperature_sharpens_and_flattens() -> None:
    row = logits((1, 2.0), (2, 1.0))
    assert drawn(row, temperature=0.1)[1] > drawn(row, temperature=1.0)[1]
    assert len(drawn(row, temperature=100.0)) > 40


def test_top_k_keeps_k() -> None:
    row = torch.arange(VOCAB) / 100
    assert set(drawn(row, top_k=3)) == {47, 48, 49}
    assert len(drawn(row, top_k=VOCAB + 5)) > 30


def test_top_p_keeps_the_least_set_that_reaches_p() -> None:
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(drawn(row, top_p=0.5)) == {0}
    assert set(drawn(row, top_p=0.51)) == {0, 1}
    assert set(drawn(row, top_p=0.9)) == {0, 1, 2}
    assert set(drawn(row, top_p=1e-9)) == {0}


def test_min_p_is_relative_to_the_best() -> None:
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(drawn(row, min_p=0.5)) == {0, 1}
    assert set(drawn(row, min_p=1.0)) == {0}


def test_repetition_penalty_counts_the_prompt_and_works_on_both_signs() -> None:
    chooser = sampler(torch.tensor([3, 3, 4]), repetition_penalty=2.0)
    row = torch.full((VOCAB,), -8.0)
    row[3], row[4], row[5] = 1.0, -1.0, 0.6
    assert chooser.next(row, 0).id == 5  # 3 fell to 0.5, once for both occurrences
    assert chooser.next(row, 1).id == 3  # 5 fell to 0.3
    row[3], row[5] = -8.0, -8.0
    row[6] = -1.5
    assert chooser.next(row, 2).id == 6  # 4 fell to -2


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    row = logits((1, 3.0), (2, 2.0))
    prompt = torch.tensor([1, 1, 1])
    once = sampler(prompt, presence_penalty=1.5)
    assert [once.next(row, index).id for index in range(5)] == [1, 2, 1, 1, 1]
    often = sampler(prompt, frequency_penalty=0.6)
    assert [often.next(row, index).id for index in range(5)] == [1, 1, 2, 1, 2]
    told = sampler(prompt, presence_penalty=1.5)
    told.seen(1)
    assert told.next(row, 1).id == 2


def test_logit_bias_bans_and_forces() -> None:
    row = logits((1, 3.0), (2, 2.0))
    assert sampler(logit_bias={1: -100.0}).next(row, 0).id == 2
    assert sampler(logit_bias={30: 100.0}).next(row, 0).id == 30


def test_ids_beyond_the_vocabulary_are_ignored() -> None:
    chooser = sampler(
        torch.tensor([1, VOCAB, 10**9]),
        repetition_penalty=1.1,
        presence_penalty=0.1,
        logit_bias={VOCAB: 100.0, -1: 100.0},
        stop_token_ids=(VOCAB,),
        min_tokens=2,
    )
    chooser.seen(VOCAB + 1)
    assert chooser.next(logits((2, 3.0)), 1).id == 2


def test_min_tokens_holds_the_stops_back() -> None:
    row = logits((1, 3.0), (2, 2.0))
    chooser = sampler(stop_token_ids=(1,), min_tokens=2)
    tokens = [chooser.next(row, index) for index in range(3)]
    assert [(token.id, token.finish) for token in tokens] == [(2, None), (2, None), (1, "stop")]


def test_the_last_token_says_length_unless_it_stops() -> None:
    row = logits((1, 3.0))
    assert sampler(max_tokens=3).next(row, 1).finish is None
    assert sampler(max_tokens=3).next(row, 2).finish == "length"
    assert sampler(max_tokens=3, stop_token_ids=(1,)).next(row, 2).finish == "stop"


def test_logprobs_are_those_of_the_model() -> None:
    row = logits((1, 3.0), (2, 2.0))
    token = sampler(logprobs=2, logit_bias={5: 100.0}, repetition_penalty=1.5).next(row, 0)
    raw = row.log_softmax(-1)
    assert token.id == 5
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(raw[5].item())
    assert [each for each, _ in token.logprobs.top] == [1, 2]
    assert [value for _, value in token.logprobs.top] == pytest.approx(raw[[1, 2]].tolist())
    assert sampler().next(row, 0).logprobs is None


def test_logits_are_left_as_they_are() -> None:
    row = logits((1, 3.0))
    before = row.clone()
    chooser = sampler(
        torch.tensor([1]), temperature=1.0, repetition_penalty=2.0, logit_bias={1: 1.0}, top_p=0.5
    )
    chooser.next(row, 0)
    assert torch.equal(row, before)


def test_a_batch_draws_what_its_rows_draw() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8},
        {"logprobs": 1},
        {"presence_penalty": 1.0},
        {"temperature": 1.0, "top_k": 5, "stop_token_ids": (1,)},
    ]
    rows = torch.randn(3, len(options), VOCAB, generator=torch.Generator().manual_seed(0))
    together, alone = ([sampler(**each) for each in options] for _ in range(2))
    for index, row in enumerate(rows):
        expected = [each.next(row[at], index) for at, each in enumerate(alone)]
        indices = [index] * len(options)
        assert draw(together, *needed(together, row, indices), indices) == expected
    assert draw([], *needed([], rows[0, :0], []), []) == []


def test_only_rows_that_need_their_logits_get_them() -> None:
    """Tokens by temperature and truncation alone are drawn where the logits are."""
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.8, "presence_penalty": 1.0},
        {"temperature": 0.8, "logprobs": 1},
    ]
    samplers = [sampler(**each) for each in options]
    rows = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    tokens, kept = needed(samplers, rows, [7] * 4)
    assert torch.equal(kept, rows[2:])
    assert tokens[1] == sampler(**options[1]).next(rows[1], 7).id


def test_prompt_logprobs() -> None:
    rows = torch.randn(3, VOCAB)
    scored = prompt_logprobs(rows, torch.tensor([4, 5, 6]), 0)
    raw = rows.log_softmax(-1)
    assert_close([each.logprob for each in scored], raw[[0, 1, 2], [4, 5, 6]].tolist())
    assert all(each.top == () for each in scored)
    best = prompt_logprobs(rows, torch.tensor([4, 5, 6]), 1)
    assert [each.top[0][0] for each in best] == rows.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_goes_on_as_it_would_have(temperature: float) -> None:
    options = {
        "temperature": temperature,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "min_tokens": 9,
        "stop_token_ids": (1,),
        "max_tokens": 12,
    }
    rows = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(3))
    prompt = torch.tensor([4, 5, 6])
    whole = sampler(prompt, **options)
    tokens = [whole.next(row, index) for index, row in enumerate(rows)]
    for answered in (1, 7, 11):
        said = torch.tensor([token.id for token in tokens[:answered]])
        rest = sampler(torch.cat((prompt, said)), **options, answered=answered)
        went_on = [rest.next(rows[index], index) for index in range(answered, 12)]
        assert went_on == tokens[answered:]


BAD = [
    pytest.param(torch.full((VOCAB,), torch.nan), id="no numbers"),
    pytest.param(torch.zeros(VOCAB).index_fill(0, torch.tensor([7]), torch.nan), id="one is none"),
    pytest.param(torch.zeros(VOCAB).index_fill(0, torch.tensor([7]), torch.inf), id="infinite"),
    pytest.param(torch.full((VOCAB,), -torch.inf), id="none is likely"),
]


@pytest.mark.parametrize("row", BAD)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_logits_that_are_no_numbers_end_their_row_alone(
    row: Tensor, temperature: float, logprobs: int | None
) -> None:
    good = logits((3, 2.0))
    samplers = [sampler(), sampler(temperature=temperature, logprobs=logprobs), sampler()]
    drawn = draw(samplers, *needed(samplers, torch.stack([good, row, good]), [0] * 3), [0] * 3)
    assert isinstance(drawn[0], Token)
    assert isinstance(drawn[2], Token)
    assert drawn[0].id == drawn[2].id == 3
    assert isinstance(drawn[1], Unsound)
    assert "not finite" in str(drawn[1])
    with pytest.raises(Unsound, match="not finite"):  # as of a prompt's last token
        samplers[1].next(row, 0)


@pytest.mark.parametrize("row", BAD)
def test_a_prompt_is_not_scored_by_what_is_no_number(row: Tensor) -> None:
    rows = torch.stack([logits((3, 2.0)), row])
    with pytest.raises(Unsound, match="not finite"):
        prompt_logprobs(rows, torch.tensor([1, 2]), 0)


def test_some_tokens_that_cannot_be_are_no_fault() -> None:
    row = logits((3, 2.0), (5, -torch.inf))
    assert sampler(logprobs=1).next(row, 0).id == 3
    assert 5 not in drawn(row)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_left_to_draw_is_an_error(temperature: float) -> None:
    chooser = sampler(temperature=temperature, min_tokens=1, stop_token_ids=tuple(range(VOCAB)))
    with pytest.raises(Invalid, match="no token is left"):
        chooser.next(torch.zeros(VOCAB), 0)


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-39, 1e-45, 2.3e-308])
def test_temperatures_near_0_take_the_best(temperature: float) -> None:
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2)) * 6
    assert set(drawn(row, 20, temperature=temperature)) == {int(row.argmax())}


def test_of_equals_the_lowest_id_is_first_everywhere() -> None:
    row = torch.zeros(5000)
    row[[4000, 300, 70]] = 2.0
    row[[9, 8]] = 1.0
    for options in ({}, {"logprobs": 4}, {"presence_penalty": 1.0}):
        chooser = sampler(**options)
        assert chooser.next(row, 0).id == 70
        (token,) = draw([sampler(**options)], *needed([chooser], row[None], [0]), [0])
        assert isinstance(token, Token)
        assert token.id == 70
    for count in range(6):
        top = prompt_logprobs(row[None], torch.tensor([0]), count)[0].top
        assert [token for token, _ in top] == [70, 300, 4000, 8, 9][:count]


def test_penalties_follow_each_token() -> None:
    """The tensors that penalties read are kept from token to token, and stay right."""
    torch.manual_seed(4)
    prompt = torch.randint(0, VOCAB, (40,))
    options = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    chooser = sampler(prompt, answered=10, **options)
    answer = prompt[30:].tolist()
    for index in range(30):
        row = torch.randn(VOCAB)
        want = row.clone()
        for token in {*prompt.tolist(), *answer}:
            want[token] = want[token] / 1.2 if want[token] > 0 else want[token] * 1.2
        for token, count in Counter(answer).items():
            want[token] -= 0.3 + 0.2 * count
        found = chooser.next(row, index).id
        assert found == int(want.argmax())
        answer.append(found)


def test_the_tokens_of_a_prompt_have_ranks() -> None:
    rows = torch.stack([logits((3, 2.0), (9, 1.0)), logits((3, 2.0), (9, 1.0))])
    first, second = prompt_logprobs(rows, torch.tensor([3, 8]), 1)
    assert (first.rank, second.rank) == (1, 3)
    assert [token for token, _ in second.top] == [3]
