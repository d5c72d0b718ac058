"""Every way of drawing tokens keeps to the grammar, and to its parameters within it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sps2.common.errors import Invalid, Unsound
from sps2.common.grammar import Grammars, choice, regex
from sps2.common.messages import Sampling
from sps2.common.model.sampler import Sampler, draw, needed, score
from sps2.common.text.tokens import Tokenizer

VOCAB = 400
"""More than the tokeniser has."""
DIGITS = regex("[0-9]+")


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint("llama3"))


@pytest.fixture
def ids(tokenizer):
    """The token of each character of a text."""

    def of(text: str) -> list[int]:
        return [tokenizer.encode(each, False)[0] for each in text]

    return of


@pytest.fixture
def sampler(tokenizer):
    def made(grammar: str, answer: tuple[int, ...] = (), **options: Any) -> Sampler:
        settings: dict[str, Any] = {"max_tokens": 50, "seed": 7, "temperature": 0.0}
        settings |= {"stop_token_ids": tokenizer.eos_ids, "grammar": grammar}
        settings |= {"answered": len(answer)} | options
        matcher = tokenizer.grammars.matcher(grammar, answer)
        return Sampler(Sampling(**settings), torch.tensor(answer, dtype=torch.int64), matcher)

    return made


def row(*values: tuple[int, float]) -> Tensor:
    logits = torch.full((VOCAB,), -1.0)
    for token, value in values:
        logits[token] = value
    return logits


def test_greedy_takes_the_best_that_may_follow(sampler, ids):
    three, five, letter = ids("35a")
    logits = row((letter, 9.0), (three, 1.0), (five, 2.0), (VOCAB - 1, 8.0))
    chooser = sampler(DIGITS)
    assert not chooser.greedy
    assert not chooser.plain
    assert chooser.next(logits, 0).id == five
    assert logits[letter] == 9.0


def test_a_batch_of_greedy_and_guided_rows_mixes_none(sampler, ids):
    letter, three = ids("a3")
    free = Sampler(Sampling(max_tokens=50, seed=1, temperature=0.0), torch.tensor([1]))
    logits = torch.stack([row((letter, 9.0), (three, 2.0))] * 2)
    samplers = [free, sampler(DIGITS)]
    tokens = draw(samplers, *needed(samplers, logits, [0, 0]), [0, 0])
    assert [token.id for token in tokens] == [letter, three]


def test_the_answer_ends_where_the_grammar_ends(sampler, ids):
    three, four = ids("34")
    chooser = sampler(regex("[0-9]{2}"))
    first = chooser.next(row((three, 2.0)), 0)
    last = chooser.next(row((four, 2.0)), 1)
    assert (first.id, first.finish) == (three, None)
    assert (last.id, last.finish) == (four, "stop")


def test_an_end_may_be_drawn_where_the_grammar_may_end(sampler, ids, tokenizer):
    (three,), (end,) = ids("3"), tokenizer.eos_ids
    logits = row((end, 9.0), (three, 1.0))
    chooser = sampler(DIGITS)
    assert chooser.next(logits, 0).id == three
    last = chooser.next(logits, 1)
    assert (last.id, last.finish) == (end, "stop")


def test_min_tokens_keeps_going_while_the_grammar_can(sampler, ids, tokenizer):
    (three,), (end,) = ids("3"), tokenizer.eos_ids
    logits = row((end, 9.0), (three, 1.0))
    chooser = sampler(DIGITS, min_tokens=3)
    assert [chooser.next(logits, index).id for index in range(4)] == [three, three, three, end]


def test_min_tokens_gives_way_where_only_an_end_may_follow(sampler, tokenizer):
    chooser = sampler(choice([""]), min_tokens=3)
    last = chooser.next(row(), 0)
    assert (last.id, last.finish) == (tokenizer.eos_ids[0], "stop")


def test_ignored_eos_ends_what_the_grammar_ends(sampler, tokenizer):
    chooser = sampler(choice([""]), stop_token_ids=())
    assert chooser.next(row(), 0).finish == "stop"


def test_a_bias_and_penalties_choose_among_what_may_follow(sampler, ids):
    three, five, letter = ids("35a")
    logits = row((three, 2.0), (five, 1.0))
    biased = sampler(DIGITS, logit_bias={letter: 100.0, five: 3.0})
    assert biased.next(logits, 0).id == five
    penalised = sampler(DIGITS, frequency_penalty=1.5)
    assert [penalised.next(logits, index).id for index in range(2)] == [three, five]


def test_odds_are_those_of_the_tokens_that_may_follow(sampler, ids):
    odds = dict(zip(ids("123"), (0.6, 0.3, 0.1), strict=True))
    logits = torch.full((VOCAB,), 5.0)
    grammar = regex("[123]")
    for token, share in odds.items():
        logits[token] = torch.tensor(share).log()
    found = Counter(
        sampler(grammar, temperature=1.0, seed=seed).next(logits, 0).id for seed in range(400)
    )
    assert {*found} == {*odds}
    for token, share in odds.items():
        assert abs(found[token] / 400 - share) < 0.1
    top = {sampler(grammar, temperature=1.0, seed=s, top_p=0.5).next(logits, 0).id for s in (1, 2)}
    assert top == {ids("1")[0]}


def test_log_probabilities_are_of_the_model(sampler, ids):
    three, letter = ids("3a")
    logits = row((letter, 9.0), (three, 2.0))
    token = sampler(DIGITS, logprobs=2).next(logits, 0)
    assert token.logprobs == score(logits[None], [three], 2)[0]
    assert token.logprobs.top[0][0] == letter


def test_an_answer_goes_on_behind_what_was_lost(sampler, ids):
    grammar, (three, four) = regex("[0-9]{3}"), ids("34")
    logits = row((three, 1.0))
    whole = sampler(grammar, temperature=1.0)
    tokens = [whole.next(logits, index) for index in range(3)]
    rest = sampler(grammar, (tokens[0].id, tokens[1].id), temperature=1.0)
    assert rest.next(logits, 2) == tokens[2]
    assert tokens[2].finish == "stop"

    owner = sampler(grammar, (three,))  # the first token behind them was drawn elsewhere
    owner.seen(four)
    assert owner.next(logits, 2).finish == "stop"


def test_bans_that_leave_nothing_fail_the_one_request(sampler, ids):
    with pytest.raises(Invalid, match="all are banned"):
        sampler(DIGITS, allowed_token_ids=tuple(ids("a"))).next(row(), 0)


def test_logits_that_are_no_numbers_are_found(sampler):
    with pytest.raises(Unsound):
        sampler(DIGITS).next(torch.full((VOCAB,), torch.nan), 0)


def test_a_grammar_needs_its_matcher():
    with pytest.raises(AssertionError, match="matcher"):
        Sampler(Sampling(max_tokens=1, seed=1, grammar=DIGITS), torch.tensor([1]))


def test_the_tokenizer_of_a_model_has_its_grammars(tokenizer):
    assert isinstance(tokenizer.grammars, Grammars)
    assert tokenizer.grammars is tokenizer.grammars
