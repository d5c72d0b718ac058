"""Prompts with needles, and the texts they are hidden in."""

from pathlib import Path

import pytest

from sps2.cli.bench import documents
from sps2.cli.bench.needles import hidden_in, prompts
from sps2.common.errors import Invalid
from sps2.common.text.tokens import Tokenizer

TEXT = "".join(f"Line {number} says nothing.\n" for number in range(2000))


def test_all_prompts_hide_all_needles_and_ask_for_one(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    needles = hidden_in("text")
    made = prompts(tokenizer, TEXT, 2500, needles, needles[2:5])
    assert [prompt.needle for prompt in made] == needles[2:5]
    assert max(len(prompt.ids) for prompt in made) == 2500
    document = made[0].document
    for prompt in made:
        assert prompt.needle is not None
        assert prompt.document == document
        inside = tokenizer.decode(prompt.ids[document.start : document.stop])
        assert all(needle.text in inside for needle in needles)
        places = [inside.index(needle.text) / len(inside) for needle in needles]
        assert places == pytest.approx([needle.depth for needle in needles], abs=0.1)
        answer = tokenizer.decode([token for token, _ in prompt.answer])
        assert answer.strip() == prompt.needle.room
        assert sum(digits for _, digits in prompt.answer) == 3
        assert prompt.needle.question in tokenizer.decode(prompt.ids[document.stop :])


def test_without_needles_there_is_one_prompt(folder: Path) -> None:
    (prompt,) = prompts(Tokenizer(folder), TEXT, 500, [], [])
    assert len(prompt.ids) == 500
    assert prompt.answer == ()


def test_too_little_room_and_too_little_text(folder: Path) -> None:
    needles = hidden_in("text")
    with pytest.raises(Invalid, match="too few for 8 needles"):
        prompts(Tokenizer(folder), TEXT, 600, needles, needles[:1])
    with pytest.raises(Invalid, match="the text has 4 tokens"):
        prompts(Tokenizer(folder), "short", 500, [], [])


def test_needles_of_a_document_never_change() -> None:
    assert hidden_in("code") == hidden_in("code")
    assert hidden_in("code") != hidden_in("page")


@pytest.mark.parametrize("name", ["manual", "code", "table"])
def test_documents_that_come_with_python(name: str) -> None:
    assert len(documents.read(name)) > 50_000


def test_a_document_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="built in are licence"):
        documents.read(str(tmp_path / "none"))
