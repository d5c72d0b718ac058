"""The anthropic package: messages, streams, tools, schemas and counted tokens."""

import sys

import anthropic
from anthropic import Anthropic

QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
        "required": ["city"],
    },
}


def chat(client: Anthropic, model: str) -> None:
    asked = {"model": model, "max_tokens": 16, "system": "Be brief.", "messages": [QUESTION]}
    message = client.messages.create(**asked)
    assert message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    counted = client.messages.count_tokens(
        model=model, system="Be brief.", messages=[QUESTION]
    ).input_tokens
    usage = message.usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text != ""
    kind = ""
    try:
        client.messages.create(**asked | {"model": "other"})
    except anthropic.NotFoundError as error:
        kind = error.body["error"]["type"]
    assert kind == "not_found_error"


def tools(client: Anthropic, model: str) -> None:
    asked = {"model": model, "max_tokens": 200, "tools": [WEATHER]}
    message = client.messages.create(
        **asked,
        messages=[QUESTION],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    [call] = message.content
    assert (message.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather")
    assert call.input["city"] in ("Oslo", "Rome")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 7 degrees."}
    turns = [
        QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(**asked, messages=turns, tool_choice={"type": "none"})
    assert last.content[0].text
    with client.messages.stream(
        **asked,
        messages=[QUESTION],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ) as stream:
        [call] = stream.get_final_message().content
    assert call.input["city"] in ("Oslo", "Rome")


def main(url: str) -> None:
    client = Anthropic(base_url=url, api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    for part in (chat, tools):
        part(client, model)


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
