"""The store forgets the oldest responses, and shows nobody those of others."""

import msgspec
import pytest

from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.responses.answers import OutputMessage, OutputText
from sps2.services.gateway.protocols.responses.items import Item
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest
from sps2.services.gateway.protocols.responses.store import MOST, Responses, Stored
from sps2.services.gateway.protocols.responses.translate import begun


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def stored(name, text="hi"):
    response = begun(ResponsesRequest(input="x"), name, "tiny")
    message = OutputMessage(id=f"msg_{name}", status="completed", content=[OutputText(text=text)])
    response = msgspec.structs.replace(response, status="completed", output=(message,))
    item = Item(type="message", id=f"in_{name}", role="user", content="x")
    return Stored(response, (item,))


def is_kept(responses, name, owner=""):
    try:
        responses.get(name, owner)
    except Invalid as error:
        return error.code != "response_not_found"
    return True


def test_only_its_owner_finds_a_response():
    responses = Responses(1 << 20, 60)
    responses.put(stored("a"), "alice")
    assert responses.get("a", "alice").response.id == "a"
    assert not is_kept(responses, "a", "bob")
    assert not is_kept(responses, "a", "")
    with pytest.raises(Invalid):
        responses.delete("a", "bob")
    assert responses.items("bob") == {}
    roles = {name: item.role for name, item in responses.items("alice").items()}
    assert roles == {"in_a": "user", "msg_a": "assistant"}
    responses.delete("a", "alice")
    assert not is_kept(responses, "a", "alice")


def test_the_oldest_make_room():
    size = len(msgspec.json.encode(stored("a")))
    responses = Responses(3 * size, 60)
    for name in "abcd":
        responses.put(stored(name), "")
    assert [is_kept(responses, name) for name in "abcd"] == [False, True, True, True]
    responses.put(stored("c", "longer"), "")
    assert [is_kept(responses, name) for name in "bcd"] == [False, True, True]
    responses.put(stored("e", "x" * 3 * size), "")
    assert not any(is_kept(responses, name) for name in "bcde")
    responses.put(stored("f"), "")
    assert is_kept(responses, "f")


def test_not_more_than_so_many():
    responses = Responses(1 << 30, 60)
    for number in range(MOST + 1):
        responses.put(stored(str(number)), "")
    assert not is_kept(responses, "0")
    assert is_kept(responses, "1")


def test_they_expire():
    clock = Clock()
    responses = Responses(1 << 20, 60, clock)
    responses.put(stored("a"), "")
    clock.now_s = 30
    responses.put(stored("b"), "")
    clock.now_s = 60
    assert [is_kept(responses, name) for name in "ab"] == [False, True]
