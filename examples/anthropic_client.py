"""The anthropic package against a cluster: a message at once, and as a stream.

    python examples/anthropic_client.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in ANTHROPIC_API_KEY.
"""

import os
import sys

from anthropic import Anthropic
from anthropic.types import MessageParam

QUESTION: MessageParam = {"role": "user", "content": "Name three rivers."}


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = Anthropic(base_url=url, api_key=os.environ.get("ANTHROPIC_API_KEY", "none"))
    model = client.models.list().data[0].id
    greedy = {"temperature": 0}

    message = client.messages.create(
        model=model, messages=[QUESTION], max_tokens=16, extra_body=greedy
    )
    print("".join(block.text for block in message.content if block.type == "text"))
    print("tokens:", message.usage.input_tokens, "and", message.usage.output_tokens)

    with client.messages.stream(
        model=model, messages=[QUESTION], max_tokens=16, extra_body=greedy
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
