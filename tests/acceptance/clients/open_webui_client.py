"""What Open WebUI 0.12.4 sends, written down from its source: it needs a browser to send it itself.

`routers/openai.py`, `routers/ollama.py`, `routers/tasks.py` and `utils/middleware.py` are where it
makes these requests.
"""

import json
import sys
from typing import Any
from urllib.request import Request, urlopen

HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer none",
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "2",
}
CALL = {"id": "call_1", "type": "function", "index": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_time",
        "description": "The time.\n:return: it",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
TURNS = [
    {"role": "system", "content": "User: Ada"},
    {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**CALL, "function": {"name": "get_current_time", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Noon."},
    {"role": "assistant", "content": "It is noon.", "reasoning_content": "Easy."},
    {"role": "user", "content": "And now?"},
]
PARAMS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.0,
    "max_tokens": 16,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "reasoning_effort": "medium",
    "seed": 7,
    "stop": ["\n\n\n"],
    "logit_bias": {"12": -100},
}


def sent(url: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, HEADERS), timeout=120) as answer:
        return answer.read()


def chat(url: str, model: str, **more: Any) -> bytes:
    body = {"model": model, "messages": TURNS, **PARAMS, **more}
    return sent(f"{url}/v1/chat/completions", body)


def openai(url: str) -> None:
    models = json.loads(sent(f"{url}/v1/models"))
    model = models["data"][0]["id"]
    options = {"include_usage": True}
    text = chat(url, model, stream=True, stream_options=options, tools=[TOOL]).decode()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    assert lines.pop() == "[DONE]"
    *chunks, last = map(json.loads, lines)
    assert any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    assert last["usage"]["completion_tokens"] <= 16
    # The title, the tags and the follow-up questions of a chat.
    answer = json.loads(chat(url, model, stream=False))
    assert answer["choices"][0]["message"]["content"]
    continued = chat(
        url,
        model,
        messages=TURNS[:-1],
        stream=False,
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert json.loads(continued)["choices"]
    vectors = sent(f"{url}/v1/embeddings", {"input": ["a river"], "model": model})
    assert json.loads(vectors)["data"][0]["embedding"]


def ollama(url: str) -> None:
    """The same cluster as a connection of its other kind."""
    assert json.loads(sent(f"{url}/api/version"))["version"]
    model = json.loads(sent(f"{url}/api/tags"))["models"][0]["model"]
    assert json.loads(sent(f"{url}/api/ps"))["models"]
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": "User: Ada"},
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": "Noon.", "thinking": "Easy."},
            {"role": "user", "content": "And now?"},
        ],
        "stream": True,
        "options": {"temperature": 0.7, "top_p": 0.9, "num_predict": 16, "num_ctx": 2048},
        "keep_alive": "5m",
        "tools": [TOOL],
    }
    *_, last = map(json.loads, sent(f"{url}/api/chat", body).splitlines())
    assert last["done"]
    assert last["eval_count"] <= 16


def main(url: str) -> None:
    openai(url)
    ollama(url)


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
