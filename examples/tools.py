"""A function that the model calls, by the openai package: the call, its result, the answer.

    python examples/tools.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in OPENAI_API_KEY.
"""

import json
import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

QUESTION = "What is the weather in Oslo?"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def weather(city: str) -> str:
    return f"Rain in {city}, 7 degrees."


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]

    asked = client.chat.completions.create(
        model=model,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
        temperature=0,
    )
    message = asked.choices[0].message
    messages.append(message.to_dict())  # type: ignore[arg-type]
    for call in message.tool_calls or []:
        if call.type == "function":
            print(f"{call.function.name}({call.function.arguments})")
            result = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    answer = client.chat.completions.create(
        model=model, messages=messages, tools=[WEATHER], max_tokens=40, temperature=0
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
