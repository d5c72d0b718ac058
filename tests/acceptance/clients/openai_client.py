"""The openai package: chats, streams, tools, schemas, responses, embeddings and batches."""

import json
import sys
import time
from typing import Literal

import openai
from openai import OpenAI
from pydantic import BaseModel, Field

QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS},
}
ENDED = ("completed", "failed", "expired", "cancelled")


class City(BaseModel):
    name: str = Field(max_length=20)
    size: Literal["small", "large"]
    inhabitants: int = Field(ge=0, le=10**8)


def chat(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=[QUESTION], max_tokens=16)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 16
    stream = client.chat.completions.create(
        model=model,
        messages=[QUESTION],
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(each.choices[0].delta.content or "" for each in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert last.usage.prompt_tokens == answer.usage.prompt_tokens
    assert client.completions.create(model=model, prompt="Once", max_tokens=8).choices[0].text
    code = ""
    try:
        client.chat.completions.create(model="other", messages=[QUESTION])
    except openai.NotFoundError as error:
        code = error.code
    assert code == "model_not_found"


def tools(client: OpenAI, model: str) -> None:
    asked = {"model": model, "tools": [WEATHER], "max_tokens": 200}
    answer = client.chat.completions.create(
        **asked, messages=[QUESTION], tool_choice="required", parallel_tool_calls=False
    )
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 7 degrees."}
    last = client.chat.completions.create(
        **asked, messages=[QUESTION, answer.choices[0].message, result], tool_choice="none"
    )
    assert last.choices[0].message.content
    with client.chat.completions.stream(
        **asked,
        messages=[QUESTION],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    ) as stream:
        kinds = {event.type for event in stream}
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def schema(client: OpenAI, model: str) -> None:
    question = {"role": "user", "content": "The largest city of France, as JSON."}
    answer = client.chat.completions.parse(
        model=model, messages=[question], response_format=City, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def responses(client: OpenAI, model: str) -> None:
    asked = {"model": model, "max_output_tokens": 200}
    first = client.responses.create(**asked, input="Name a river.")
    assert first.output_text
    second = client.responses.create(**asked, input="Another.", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens
    with client.responses.stream(**asked, input="Name a river.") as stream:
        assert "response.output_text.delta" in {event.type for event in stream}
        assert stream.get_final_response().output_text
    parsed = client.responses.parse(**asked, input="A city.", text_format=City)
    assert isinstance(parsed.output_parsed, City)
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    called = client.responses.create(
        **asked,
        input="The weather in Oslo?",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    [call] = [item for item in called.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    last = client.responses.create(**asked, input=[result], previous_response_id=called.id)
    assert last.output_text


def embeddings(client: OpenAI, model: str) -> None:
    answer = client.embeddings.create(model=model, input=["a river", "a lake"])
    assert len(answer.data) == 2
    assert abs(sum(value**2 for value in answer.data[0].embedding) - 1) < 1e-3


def batches(client: OpenAI, model: str) -> None:
    endpoint = "/v1/chat/completions"
    body = {"model": model, "messages": [QUESTION], "max_tokens": 8}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": endpoint, "body": body}
        for number in range(2)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    while batch.status not in ENDED:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)
    answers = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    assert {each["custom_id"] for each in answers} == {"0", "1"}


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    for part in (chat, tools, schema, responses, embeddings, batches):
        part(client, model)


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
