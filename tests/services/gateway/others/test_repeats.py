"""A request that is repeated at another gateway gets the answer of the one that runs it."""

import asyncio

PATH = "/v1/completions"
KEY = {"idempotency-key": "one"}


async def test_a_repeated_request_is_run_once(clients, doors):
    first, second = clients
    play = doors[0].play
    play.gates["token 3"] = asyncio.Event()
    body = {"prompt": "x", "stream": True}
    async with first.stream("POST", PATH, json=body, headers=KEY) as answer:
        begun = await anext(answer.aiter_lines())
        async with second.stream("POST", PATH, json=body, headers=KEY) as again:
            lines = again.aiter_lines()
            assert await anext(lines) == begun
            play.gates["token 3"].set()
            rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    whole = (await second.post(PATH, json=body, headers=KEY)).text
    assert [line for line in whole.splitlines() if line] == [begun, *rest]
    assert (len(play.submitted), play.cancelled) == (1, [])
    refused = await second.post(PATH, json={"prompt": "y"}, headers=KEY)
    assert refused.status_code == 422
