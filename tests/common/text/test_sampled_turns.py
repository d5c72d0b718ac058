"""Sampled tokens take the place of an answer only where the template shows all of it."""

from collections.abc import Mapping

import pytest

from sps2.common.text.sampled_turns import Part, Sampled, with_sampled

OPENING = "<a>"
IDS = (7, 8)


def turn(*texts: str, plain: bool = True, opening: str = OPENING) -> Sampled:
    return Sampled(IDS, opening, texts, plain)


class Template:
    """A conversation of contents, each shown by `show`; odd places are answers."""

    def __init__(self, contents: list[str], show=lambda place, content: content, opening=OPENING):
        self.contents, self.show, self.opening = contents, show, opening

    def render(self, others: Mapping[int, str]) -> str:
        return "".join(
            f"{self.opening}{others.get(place, self.show(place, each))}<end>"
            if place % 2
            else f"<u>{each}<end>"
            for place, each in enumerate(self.contents)
        )

    def parts(self, turns: dict[int, Sampled]) -> list[Part]:
        return with_sampled(self.render({}), turns, self.render)


def test_tokens_are_in_the_place_of_answers() -> None:
    template = Template(["hi", "yes", "and", "no", "so"])
    parts = template.parts({1: turn("yes"), 3: turn("no")})
    assert parts == ["<u>hi<end><a>", IDS, "<end><u>and<end><a>", IDS, "<end><u>so<end>"]


def test_other_answers_stay_text() -> None:
    template = Template(["hi", "yes", "and", "yes", "so"])
    first, second = (template.parts({place: turn("yes")}) for place in (1, 3))
    assert first == ["<u>hi<end><a>", IDS, "<end><u>and<end><a>yes<end><u>so<end>"]
    assert second == ["<u>hi<end><a>yes<end><u>and<end><a>", IDS, "<end><u>so<end>"]


def test_what_the_template_strips_is_tokenised_again() -> None:
    template = Template(["hi", "yes ", "so"], lambda place, content: content.strip())
    assert template.parts({1: turn("yes ")}) == [template.render({})]
    assert template.parts({1: turn("yes")}) != [template.render({})]


def test_thoughts_that_the_template_drops_are_tokenised_again() -> None:
    kept = Template(
        ["hi", "yes", "so", "no", "and"],
        lambda place, content: f"<think>\nhm\n</think>\n{content}" if place == 3 else content,
    )
    thought = {1: turn("yes", "hm\n", plain=False), 3: turn("no", "hm\n", plain=False)}
    parts = kept.parts(thought)
    assert parts == ["<u>hi<end><a>yes<end><u>so<end><a>", IDS, "<end><u>and<end>"]


def test_calls_may_be_written_in_another_way() -> None:
    template = Template(["hi", "", "so"], lambda place, _: '<call>{"name": "f"}</call>')
    assert template.parts({1: turn("", "f", plain=False)})[1] == IDS
    assert template.parts({1: turn("", "g", plain=False)}) == [template.render({})]


def test_an_opening_that_the_template_shows_only_once_goes_before_the_tokens() -> None:
    template = Template(["hi", "yes", "so"], lambda _, content: f"<think>hm</think>{content}")
    turns = {1: turn("yes", "hm", plain=False, opening="<a><think>")}
    assert template.parts(turns) == ["<u>hi<end><a><think>", IDS, "<end><u>so<end>"]
    bare = Template(["hi", "yes", "so"])
    assert bare.parts({1: turn("yes", opening="<a><think>\n\n</think>\n")}) == [bare.render({})]
    assert bare.parts({1: turn("yes", opening="<b>")}) == [bare.render({})]


def test_an_answer_at_the_end_is_the_whole_end() -> None:
    template = Template(["hi", "<end>"])
    assert template.parts({1: turn("<end>", plain=False)}) == ["<u>hi<end><a>", IDS, "<end>"]


@pytest.mark.parametrize(
    "lose", [lambda text: text.replace("\ufdd1", ""), lambda text: text + text, str.upper]
)
def test_a_mark_that_does_not_survive_changes_nothing(lose) -> None:
    template = Template(["hi", "yes", "so"])
    plain = template.render({})
    assert with_sampled(plain, {1: turn("yes")}, lambda marks: lose(template.render(marks))) == [
        plain
    ]


def test_a_template_that_shows_marks_elsewhere_changes_nothing() -> None:
    plain = "<u>hi<end><a>yes<end>"
    assert with_sampled(plain, {1: turn("yes")}, lambda marks: f"other {marks[1]}") == [plain]
