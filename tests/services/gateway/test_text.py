from sps2.common.messages import Token
from sps2.services.gateway.text import Writer


class Letters:
    """A token is a letter; 0 completes nothing, and what it withheld comes with the flush."""

    def __init__(self):
        self._left = ""

    def feed(self, index):
        if index == 0:
            self._left = "?"
            return ""
        return chr(index)

    def flush(self):
        return self._left


def tokens(text, finish):
    ids = [ord(letter) for letter in text]
    last = len(ids) - 1
    return [
        Token(place, each, None, finish if place == last else None)
        for place, each in enumerate(ids)
    ]


def test_a_token_that_stops_is_listed_without_a_text():
    writer = Writer(Letters(), ends=[ord("!")])
    pieces = [writer.add(token) for token in tokens("ab!", "stop")]
    assert [piece.text for piece in pieces] == ["a", "b", ""]
    assert [piece.finish for piece in pieces] == [None, None, "stop"]
    assert [(each.id, each.offset) for each in pieces[-1].tokens] == [(ord("!"), 2)]


def test_the_last_token_of_a_grammar_is_text():
    writer = Writer(Letters(), ends=[ord("!")])
    pieces = [writer.add(token) for token in tokens("ab", "stop")]
    assert [piece.text for piece in pieces] == ["a", "b"]
    assert [(each.id, each.offset) for each in pieces[-1].tokens] == [(ord("b"), 1)]


def test_the_last_token_of_a_length_is_text():
    writer = Writer(Letters(), ends=())
    pieces = [writer.add(token) for token in tokens("ab", "length")]
    assert pieces[-1].text == "b"
    assert [each.offset for each in pieces[-1].tokens] == [1]


def test_an_incomplete_character_comes_with_the_end():
    writer = Writer(Letters(), ends=[65])
    assert writer.add(Token(0, 0)).text == ""
    last = writer.add(Token(1, 65, None, "stop"))
    assert last.text == "?"
    assert [(each.id, each.offset) for each in last.tokens] == [(0, 0), (65, 1)]


def test_tokens_come_with_their_text():
    writer = Writer(Letters(), (), ("bcd",))
    pieces = [writer.add(token) for token in tokens("abcxbcd", "length")]
    assert [piece.text for piece in pieces] == ["a", "", "", "bcx", "", "", ""]
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 0, 3, 0, 0, 0]
    assert pieces[-1].finish == "stop"


def test_stop_strings_wait_for_the_fewest_tokens():
    writer = Writer(Letters(), (), ("a",), min_tokens=3)
    pieces = [writer.add(token) for token in tokens("aaa", "length")]
    assert "".join(piece.text for piece in pieces) == "aa"
    assert [piece.finish for piece in pieces] == [None, None, "stop"]
