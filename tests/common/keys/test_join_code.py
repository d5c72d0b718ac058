"""Codes for joining: what is written is read again, and typing errors are found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.errors import Invalid
from sps2.common.keys.join_code import (
    ALPHABET,
    CHARACTERS,
    PRINT_BYTES,
    SECRET_BYTES,
    JoinCode,
    decode,
    encode,
    fingerprint,
    pair_of,
)

CODES = st.builds(
    JoinCode,
    st.ip_addresses(v=4).map(str),
    st.integers(1, 65535),
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    st.binary(min_size=PRINT_BYTES, max_size=PRINT_BYTES),
)
CODE = JoinCode("192.168.1.17", 8013, b"0123456789", b"abcdefghij")


@given(CODES)
def test_a_code_is_read_as_it_was_written(code: JoinCode) -> None:
    text = encode(code)
    assert decode(text) == code
    assert len(text.replace("-", "")) == CHARACTERS
    for spelled in (text.lower(), text.replace("-", " "), text.replace("-", ""), f" {text}\n"):
        assert decode(spelled) == code


@given(CODES)
def test_letters_that_look_like_digits_are_taken_for_them(code: JoinCode) -> None:
    spelled = encode(code).replace("0", "o").replace("1", "l")
    assert decode(spelled) == decode(spelled.replace("l", "i")) == code


@given(CODES, st.integers(0, CHARACTERS - 1), st.integers(1, 31))
def test_a_wrong_character_is_found_with_its_group(code: JoinCode, place: int, by: int) -> None:
    digits = encode(code).replace("-", "")
    wrong = ALPHABET[(ALPHABET.index(digits[place]) + by) % 32]
    mistyped = digits[:place] + wrong + digits[place + 1 :]
    with pytest.raises(Invalid, match=f"typing error in its {place // 4 + 1}(st|nd|rd|th) group"):
        decode(mistyped)


@given(CODES, st.integers(0, CHARACTERS - 2))
def test_swapped_characters_are_found(code: JoinCode, place: int) -> None:
    digits = [*encode(code).replace("-", "")]
    swapped = digits.copy()
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    if swapped != digits:
        with pytest.raises(Invalid, match="typing error"):
            decode("".join(swapped))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda text: text[:-1], "has 48 characters, and this has 47"),
        (lambda text: text + "7", "has 48 characters, and this has 49"),
        (lambda text: "", "has 48 characters, and this has 0"),
        (lambda text: "U" + text[1:], "no code has the character 'U', as 'U"),
        (lambda text: text.replace("-", "_"), "no code has the character '_'"),
    ],
)
def test_what_is_no_code_is_refused_by_what_is_wrong(spoil: "object", why: str) -> None:
    assert callable(spoil)
    with pytest.raises(Invalid, match=why):
        decode(spoil(encode(CODE)))


def test_a_code_of_another_layout_is_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sps2.common.keys.join_code.LAYOUT", 2)
    later = encode(CODE)
    monkeypatch.undo()
    with pytest.raises(Invalid, match="another version of SPS2"):
        decode(later)


def test_keys_and_fingerprints_depend_on_all_of_it() -> None:
    public, secret = pair_of(b"0123456789")
    assert pair_of(b"0123456789") == (public, secret)
    assert pair_of(b"0123456788") != (public, secret)
    assert fingerprint(public) != fingerprint(secret)
    assert "0123456789" not in repr(CODE)
