import itertools

from hypothesis import given
from hypothesis import strategies as st

from sps2.services.gateway.stops import StopStrings

TEXT = st.text("ab", max_size=12)


def shown(pieces, stops):
    finder = StopStrings(stops)
    out = ""
    for piece in pieces:
        out += finder.add(piece)
        if finder.hit:
            return out, True
    return out + finder.flush(), False


def test_cuts_before_the_stop_string():
    assert shown(["Hello, wor", "ld."], ("o, w",)) == ("Hell", True)
    assert shown(["Hello"], ("zzz",)) == ("Hello", False)
    assert shown(["a", "b"], ()) == ("ab", False)


def test_tells_which_was_found():
    finder = StopStrings(("ld", "world", "wo"))
    assert finder.add("Hello, w") == "Hello, "
    assert finder.found == ""
    assert finder.add("orld") == ""
    assert finder.found == "wo"
    longest = StopStrings(("b", "ab"))
    longest.add("xab")
    assert longest.found == "ab"


def test_holds_back_what_may_become_a_stop_string():
    finder = StopStrings(("END",))
    assert finder.add("text E") == "text "
    assert finder.add("N") == ""
    assert finder.add("X") == "ENX"
    assert finder.flush() == ""


@given(TEXT, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_does_not_depend_on_how_the_text_is_cut(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert shown(pieces, tuple(stops)) == shown(list(text), tuple(stops))


@given(TEXT, st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_shows_no_stop_string(text, stops):
    out, hit = shown(list(text), tuple(stops))
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert hit == any(stop in text for stop in stops)
