"""litellm: completions, streams, tools, schemas and embeddings."""

import json
import sys
from typing import Literal

import litellm
from pydantic import BaseModel, Field
from served import model_of

QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    name: str = Field(max_length=20)
    size: Literal["small", "large"]


def openai_compatible(url: str, model: str) -> None:
    for provider in ("openai", "hosted_vllm"):
        asked = {"model": f"{provider}/{model}", "api_base": f"{url}/v1", "api_key": "none"}
        asked |= {"num_retries": 0, "max_tokens": 200}
        answer = litellm.completion(**asked | {"max_tokens": 16}, messages=[QUESTION])
        assert answer.choices[0].message.content
        chunks = litellm.completion(
            **asked | {"max_tokens": 16},
            messages=[QUESTION],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(chunks)
        text = "".join(c.delta.content or "" for each in chunks for c in each.choices)
        assert text
        assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0

        called = litellm.completion(
            **asked,
            messages=[QUESTION],
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        message = called.choices[0].message
        [call] = message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
        result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "Rain."}
        last = litellm.completion(
            **asked, messages=[QUESTION, message, result], tools=[WEATHER], tool_choice="none"
        )
        assert last.choices[0].message.content

        parsed = litellm.completion(**asked, messages=[QUESTION], response_format=City)
        City.model_validate_json(parsed.choices[0].message.content)

        del asked["max_tokens"]
        vectors = litellm.embedding(**asked, input=["a river", "a lake"])
        assert len(vectors.data) == 2


def others(url: str, model: str) -> None:
    for provider, base in (("anthropic", url), ("ollama_chat", url)):
        answer = litellm.completion(
            model=f"{provider}/{model}",
            api_base=base,
            api_key="none",
            messages=[QUESTION],
            max_tokens=16,
        )
        assert answer.choices[0].message.content, provider


def main(url: str) -> None:
    model = model_of(url)
    openai_compatible(url, model)
    others(url, model)


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
