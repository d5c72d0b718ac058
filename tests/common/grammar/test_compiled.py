"""A matcher bans what may not follow, and compiled grammars are kept."""

import asyncio
import json
import random
import threading
from contextlib import suppress

import numpy as np
import pytest

from sps2.common.errors import Internal, Invalid
from sps2.common.grammar import Grammars, Matcher, choice, compiled, json_schema, lark, regex
from sps2.common.text.tokens import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint("llama3"))


@pytest.fixture
def grammars(tokenizer) -> Grammars:
    return tokenizer.grammars


def allowed(matcher: Matcher, vocab: int = 400) -> set[int]:
    scores = np.zeros(vocab, np.float32)
    matcher.ban(scores)
    assert set(np.unique(scores)) <= {0.0, -np.inf}
    return {*np.flatnonzero(scores == 0).tolist()}


def follow(matcher: Matcher, ids: list[int]) -> None:
    """Go on with tokens as a request does."""
    for each in ids:
        matcher.advance(each)
        allowed(matcher)


def test_only_what_may_follow_is_left(grammars, tokenizer):
    matcher = grammars.matcher(regex("[0-9]{2}"))
    digits = {each for each in range(384) if tokenizer.token_text(each).isdecimal()}
    found = allowed(matcher)
    assert found
    assert found <= digits
    one = next(each for each in found if len(tokenizer.token_text(each)) == 1)
    matcher.advance(one)
    assert not matcher.ended
    matcher.advance(one)
    assert matcher.ended
    assert allowed(matcher) == {*tokenizer.eos_ids}


def test_ids_beyond_the_tokenizer_are_banned_and_fewer_are_no_fault(grammars, tokenizer):
    matcher = grammars.matcher(lark("start: /(?s).*/"))
    found = allowed(matcher, 500)
    assert max(found) < tokenizer.vocab_size
    assert allowed(matcher, 300) == {each for each in found if each < 300}


def test_an_end_is_allowed_where_the_grammar_may_end(grammars, tokenizer):
    (end,) = tokenizer.eos_ids
    matcher = grammars.matcher(regex("a*b?"))
    assert end in allowed(matcher)
    matcher.advance(*tokenizer.encode("ab", False))
    assert matcher.ended


def test_special_tokens_are_no_text(grammars, tokenizer):
    assert not tokenizer.special_ids & allowed(grammars.matcher(regex("(?s).+")))


def test_a_matcher_begins_behind_what_was_answered(grammars, tokenizer):
    ids = tokenizer.encode('{"name": "x', False)
    whole = grammars.matcher(json_schema(SCHEMA))
    for each in ids:
        whole.advance(each)
    assert allowed(grammars.matcher(json_schema(SCHEMA), ids)) == allowed(whole)


def test_rolled_back_tokens_leave_no_trace(grammars, tokenizer):
    matcher = grammars.matcher(json_schema(SCHEMA), tokenizer.encode('{"name', False))
    before = allowed(matcher)
    ids = tokenizer.encode('": "x", "size": 1}', False)
    matcher.advance(*ids)
    assert matcher.ended
    matcher.rollback(len(ids))
    assert not matcher.ended
    assert allowed(matcher) == before


def test_a_token_that_may_not_follow_is_an_error(grammars, tokenizer):
    matcher = grammars.matcher(regex("a"))
    with pytest.raises(Internal, match="cannot follow its grammar"):
        matcher.advance(*tokenizer.encode("b", False))


def test_too_much_work_in_the_middle_of_an_answer_is_the_fault_of_the_request(grammars, tokenizer):
    digits = "0123456789"
    grammar = lark(f'start: "{digits}" A "b"\nA: /(.{{0,500}}a){{40}}/')
    matcher = grammars.matcher(grammar, tokenizer.encode(digits, False))
    with pytest.raises(Invalid, match="too much work for one token"):
        follow(matcher, tokenizer.encode("a" * 2000, False))


def written(grammars: Grammars, tokenizer: Tokenizer, grammar: str) -> str:
    """The text that a grammar leads to, taking the last token that may follow."""
    matcher, ids = grammars.matcher(grammar), []
    while not matcher.ended:
        ids.append(max(allowed(matcher)))
        matcher.advance(ids[-1])
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_texts_that_spell_a_special_token_are_written_by_its_letters(grammars, tokenizer):
    (name, number), *_ = ((each, at) for each, at in tokenizer.special.items() if len(each) > 2)
    text = f"a{name}\N{SNOWMAN}{name}"
    assert written(grammars, tokenizer, choice([text])) == text
    closed = {"type": "object", "additionalProperties": False}
    schema = {**closed, "properties": {text: {"const": text}}, "required": [text]}
    assert json.loads(written(grammars, tokenizer, json_schema(schema))) == {text: text}
    matcher = grammars.matcher(lark(f'start: "a" <[{number}]> "b"'), tokenizer.encode("a", False))
    assert allowed(matcher) == {number}
    matcher.advance(number)
    assert not matcher.ended


@pytest.mark.parametrize("grammar", ["start: start", "start: A\nA: /a/ & /b/"])
def test_a_grammar_that_no_text_follows_is_invalid(grammars, grammar):
    with pytest.raises(Invalid, match="no text follows"):
        grammars.check(lark(grammar))


def test_a_grammar_that_no_text_follows_to_its_end_is_the_fault_of_the_request(grammars, tokenizer):
    digits = "0123456789"
    matcher = grammars.matcher(
        lark(f'start: "{digits}" a\na: a'), tokenizer.encode(digits[:9], False)
    )
    with pytest.raises(Invalid, match="no text follows"):
        follow(matcher, tokenizer.encode("90", False))


def test_matchers_of_one_grammar_are_apart(grammars, tokenizer):
    first, second = (grammars.matcher(regex("aaa")) for _ in range(2))
    before = allowed(second)
    first.advance(*tokenizer.encode("aaa", False))
    assert first.ended
    assert allowed(second) == before


def test_random_walks_end_in_texts_of_the_grammar(grammars, tokenizer):
    dice = random.Random(1)
    for _ in range(5):
        matcher, ids = grammars.matcher(json_schema(SCHEMA)), []
        while not matcher.ended:
            ids.append(dice.choice(sorted(allowed(matcher))))
            matcher.advance(ids[-1])
        found = json.loads(tokenizer.decode(ids))
        assert {*found} == {"name", "size"}
        assert isinstance(found["size"], int)


def test_a_grammar_is_compiled_once(grammars, monkeypatch):
    made, compile_ = [], Grammars._compile

    def counted(self, text):
        made.append(text)
        return compile_(self, text)

    monkeypatch.setattr(Grammars, "_compile", counted)
    for text in (regex("once"), regex("[once"), regex("once"), regex("[once")):
        with suppress(Invalid):
            grammars.matcher(text)
    assert made == [regex("once"), regex("[once")]


def test_what_is_too_large_is_not_kept(tokenizer):
    grammars = Grammars(tokenizer._tokenizer.to_str(), tokenizer.eos_ids)
    with pytest.raises(Invalid, match="too large"):
        grammars.check(regex("a" * compiled.MOST_BYTES))
    assert not grammars._kept


def test_few_grammars_are_kept(tokenizer, monkeypatch):
    monkeypatch.setattr(compiled, "KEPT", 2)
    grammars = Grammars(tokenizer._tokenizer.to_str(), tokenizer.eos_ids)
    for letter in "abc":
        grammars.check(regex(letter))
    grammars.check(regex("b"))
    assert [*grammars._kept] == [regex("c"), regex("b")]


async def test_a_slow_grammar_leaves_the_loop_free(tokenizer, monkeypatch):
    grammars = Grammars(tokenizer._tokenizer.to_str(), tokenizer.eos_ids)
    held, compile_ = threading.Event(), Grammars._compile

    def slow(self, text):
        held.wait()
        return compile_(self, text)

    monkeypatch.setattr(Grammars, "_compile", slow)
    waiting = asyncio.create_task(grammars.begin(regex("slow")))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.set()
    assert not (await waiting).ended


def test_a_tokenizer_that_the_library_cannot_read_refuses_grammars():
    grammars = Grammars("{}", [0])
    with pytest.raises(Invalid, match="cannot follow a grammar"):
        grammars.check(regex("a"))
