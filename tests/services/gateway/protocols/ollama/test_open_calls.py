"""A result answers the first call that it can be of."""

from sps2.services.gateway.protocols.ollama.open_calls import Call, OpenCalls

A, B, C = Call("1", "find"), Call("2", "seek"), Call("3", "find")


def opened(*calls):
    made = OpenCalls()
    made.add(calls or (A, B, C))
    return made


def test_without_a_name_it_is_of_the_first_open_call():
    calls = opened()
    assert [calls.close("", "") for _ in range(4)] == [A, B, C, None]


def test_by_a_function_it_is_of_its_first_open_call():
    calls = opened()
    assert calls.close("", "seek") == B
    assert calls.close("", "seek") is None
    assert calls.close("", "other") is None
    assert [calls.close("", "find"), calls.close("", "find")] == [A, C]


def test_an_id_decides():
    calls = opened()
    assert calls.close("3", "seek") == C
    assert calls.close("3", "") is None
    assert calls.close("", "find") == A
    assert calls.close("", "") == B


def test_calls_of_one_id_are_closed_in_their_order():
    calls = opened(A, A)
    calls.add([B])
    assert [calls.close("1", "") for _ in range(3)] == [A, A, None]
    assert calls.close("", "") == B
