"""Stored responses are the same at every gateway, whichever made them."""

import asyncio
import struct

from sps2.services.gateway.names import number_in

from ....waiting import until

PATH = "/v1/responses"


def prompt_of(submit):
    ids = struct.unpack(f"<{len(submit.prompt) // 4}i", submit.prompt)
    return bytes(each for each in ids if each < 256).decode()


async def made(client, **fields):
    answer = await client.post(PATH, json={"input": "Hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_ids_say_which_gateway_gave_them(clients):
    for number, client in enumerate(clients):
        response = await made(client)
        assert number_in(response["id"]) == number
        answer = await client.post("/v1/completions", json={"prompt": "x"})
        assert number_in(answer.json()["id"]) == number


async def test_a_response_is_shown_and_forgotten_anywhere(clients):
    first, second = clients
    response = await made(first)
    path = f"{PATH}/{response['id']}"
    assert (await second.get(path)).json() == response
    items = (await second.get(f"{path}/input_items")).json()
    assert items == (await first.get(f"{path}/input_items")).json()
    assert items["data"][0]["content"][0]["text"] == "Hi"
    assert (await second.delete(path)).json()["deleted"]
    for client in clients:
        missing = await client.get(path)
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "response_not_found"


async def test_a_conversation_goes_on_anywhere(clients, doors):
    first, second = clients
    response = await made(first)
    name, item = response["id"], response["output"][0]["id"]
    await made(second, previous_response_id=name)
    assert "user:Hi\nassistant:Hello, world.\nuser:Hi" in prompt_of(doors[0].play.submitted[-1])
    await made(second, input=[{"type": "item_reference", "id": item}])
    assert "assistant:Hello, world.\n" in prompt_of(doors[0].play.submitted[-1])
    for field in ({"previous_response_id": "resp_" + "0" * 12}, {"previous_response_id": "mine"}):
        missing = await second.post(PATH, json={"input": "Hi", **field})
        assert missing.status_code == 404
        assert missing.json()["error"]["param"] == "previous_response_id"
    references = [{"type": "item_reference", "id": "nothing"}]
    missing = await second.post(PATH, json={"input": references})
    assert missing.status_code == 404
    assert missing.json()["error"]["param"] == "input[0].id"


async def test_a_response_in_the_background_is_cancelled_from_anywhere(clients, doors):
    first, second = clients
    play = doors[0].play
    play.gates["token 3"] = asyncio.Event()
    response = await made(first, background=True)
    path = f"{PATH}/{response['id']}"
    assert (await second.get(path)).json()["status"] == "in_progress"
    ended = await second.post(f"{path}/cancel")
    assert ended.json()["status"] == "cancelled"
    await until(lambda: play.cancelled)


async def test_a_gateway_that_is_away_is_named(clients, doors):
    """A 404 would be wrong: whether it has the response is not known."""
    first, second = clients
    response = await made(second)
    await doors[0].parts._others.peers[1].close()
    for answer in (
        await first.get(f"{PATH}/{response['id']}"),
        await first.post(PATH, json={"input": "Hi", "previous_response_id": response["id"]}),
        await first.get("/v1/files"),
    ):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "peer_lost"
        assert "gateway.1" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1"
