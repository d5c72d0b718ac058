"""OpenAI's Responses API against a cluster: a stream, and a second response that goes on from it.

    python examples/responses.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in OPENAI_API_KEY.
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id

    previous = ""
    stream = client.responses.create(
        model=model, input="Name three rivers.", max_output_tokens=16, temperature=0, stream=True
    )
    for event in stream:
        if event.type == "response.created":
            previous = event.response.id
        elif event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    print()

    second = client.responses.create(
        model=model,
        input="And three lakes.",
        previous_response_id=previous,
        max_output_tokens=16,
        temperature=0,
    )
    print(second.output_text)
    items = client.responses.input_items.list(second.id)
    print("answered items:", len(items.data))


if __name__ == "__main__":
    main()
