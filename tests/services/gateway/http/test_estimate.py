"""What a request would take, without running it; and requests that must not take longer."""

import pytest

from sps2.common.client import AsyncClient
from sps2.common.errors import Invalid, Refused

ESTIMATE, COMPLETIONS = "/v1/estimate", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


async def test_an_estimate_is_of_the_same_body_as_the_request(http, door):
    answer = await http.post(
        ESTIMATE,
        json={
            "prompt": "hello",
            "max_tokens": 7,
            "temperature": 0.5,
            "cache_salt": "mine",
            "sps2": {"sp_degree": 2, "priority": 3},
        },
    )
    assert answer.status_code == 200
    assert answer.json() == {
        "prompt_tokens": 5,
        "cached_tokens": 3,
        "ttft_ms": 750.0,
        "queue_ms": 500.0,
        "tbt_ms": None,
        "sp_degree": 2,
        "method": "gather",
        "exchange_bytes": 100,
        "waits_for": "",
    }
    (submit,) = door.play.submitted
    assert (submit.sampling.max_tokens, submit.cache_salt, submit.priority) == (7, "mine", 3)
    assert submit.options.sp_degree == 2


async def test_all_that_a_request_may_have_is_taken(http, door):
    for own in ({"prompt": "a", "echo": True, "logprobs": 3, "best_of": 1},):
        assert (await http.post(ESTIMATE, json=own)).status_code == 200
    own = {"messages": HI, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 3}
    assert (await http.post(ESTIMATE, json=own)).status_code == 200
    wrong = await http.post(ESTIMATE, json={"messages": HI, "echo": True})
    assert wrong.json()["error"]["param"] == "echo"


async def test_of_a_chat_too_and_where_there_is_no_room(http, door):
    door.play.full = True
    found = (await http.post(ESTIMATE, json={"messages": HI, "stream": True})).json()
    assert found["prompt_tokens"] == len("user:hi\nassistant:")
    assert (found["ttft_ms"], found["tbt_ms"]) == (None, 20.0)
    assert found["waits_for"] == "room for its KV"


@pytest.mark.parametrize(
    ("body", "field", "why"),
    [
        ({}, "prompt", "either `prompt` or `messages`"),
        ({"prompt": "a", "messages": HI}, "prompt", "either"),
        ({"prompt": ["a", "b"]}, "prompt", "one answer to one prompt"),
        ({"prompt": "a", "n": 2}, "n", "one answer to one prompt"),
        ({"prompt": "a", "model": "other"}, "model", "other"),
        ({"prompt": "a" * 300}, "prompt", "context"),
        ({"prompt": "a", "sps2": {"priority": 9}}, "sps2.priority", "from -8 to 8"),
        ({"prompt": "a", "sps2": {"max_ttft_ms": 0}}, "sps2.max_ttft_ms", "over 0"),
    ],
)
async def test_what_is_wrong_is_named(http, body, field, why):
    answer = await http.post(ESTIMATE, json=body)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert error["param"] == field
    assert why in error["message"]


async def test_the_sdk_estimates(door):
    async with AsyncClient(door.bus) as client:
        assert (await client.estimate("hello", max_tokens=2)).ttft_ms == 750.0
        assert (await client.estimate(messages="hi")).prompt_tokens == 18
        with pytest.raises(Invalid, match="either `prompt` or `messages`"):
            await client.estimate()


async def test_limits_of_a_request_reach_the_scheduler(http, door):
    own = {"priority": -2, "max_ttft_ms": 1500}
    await http.post(COMPLETIONS, json={"prompt": "a", "sps2": own})
    (submit,) = door.play.submitted
    assert (submit.priority, submit.max_ttft_s) == (-2, 1.5)


async def test_one_that_would_come_too_late_is_refused_and_told_when_to_retry(http, door):
    door.play.fail["queue"] = Refused("the first token is predicted after 9000 ms", 4.2)
    answer = await http.post(COMPLETIONS, json={"prompt": "a", "sps2": {"max_ttft_ms": 10}})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "5"
    assert "9000 ms" in answer.json()["error"]["message"]
