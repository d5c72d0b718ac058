import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.text.special_token_guard import Guard, Segment, segments

GUARD = Guard(["<|end|>", "<|begin|>", "aa"])


def test_only_what_was_broken_is_literal():
    rendered = f"<|begin|>{GUARD.guarded('x<|end|>y')}<|end|>"
    assert list(segments(rendered)) == [
        Segment("<|begin|>x", False),
        Segment("<|end|>", True),
        Segment("y<|end|>", False),
    ]


@pytest.mark.parametrize("plain", ["", "hello", "<|en", "a\ufdd0b"])
def test_other_texts_stay_as_they_are(plain):
    assert GUARD.guarded(plain) is plain


@given(st.lists(st.sampled_from(["<|end|>", "<|end", "|>", "aa", "a", "\ufdd0", "x"])).map("".join))
def test_no_spelling_is_left_and_no_letter_lost(content):
    guarded = GUARD.guarded(content)
    if guarded != content:
        parts = list(segments(guarded))
        assert "".join(part.text for part in parts) == content.replace("\ufdd0", "")
        assert not any(
            token in part.text
            for part in parts
            if not part.literal
            for token in ("<|end|>", "<|begin|>", "aa")
        )


def test_a_model_without_special_tokens_guards_nothing():
    assert Guard([]).guarded("<|end|>") == "<|end|>"
