"""The ollama package: chats, streams, tools, schemas, generation and embeddings."""

import sys
from typing import Literal

import ollama
from pydantic import BaseModel, Field

QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}


class City(BaseModel):
    name: str = Field(max_length=20)
    size: Literal["small", "large"]


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"Rain in {city}, 7 degrees."


def main(url: str) -> None:
    client = ollama.Client(url)
    model = client.list().models[0].model
    short, long = {"num_predict": 16}, {"num_predict": 200}
    assert client.show(model).modelinfo
    assert client.ps().models[0].model == model
    answer = client.chat(model, [QUESTION], options=short)
    assert answer.message.content
    assert answer.done
    *_, last = parts = list(client.chat(model, [QUESTION], options=short, stream=True))
    assert "".join(each.message.content for each in parts)
    assert last.eval_count <= 16
    assert client.generate(model, "Once upon a time", options=short).response

    answer = client.chat(model, [QUESTION], format=City.model_json_schema(), options=long)
    City.model_validate_json(answer.message.content)

    # Ollama's API cannot force a call, so that the turn with a call is written here.
    answer = client.chat(model, [QUESTION], tools=[weather], options=short)
    assert answer.message.content or answer.message.tool_calls
    call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [
        QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": weather("Oslo")},
    ]
    assert client.chat(model, turns, tools=[weather], options=short).message.content

    assert len(client.embed(model, ["a river", "a lake"]).embeddings) == 2
    status = 200
    try:
        client.chat("other", [QUESTION])
    except ollama.ResponseError as error:
        status = error.status_code
    assert status == 404


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
