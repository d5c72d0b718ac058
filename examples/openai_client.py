"""The openai package against a cluster: a chat at once, and as a stream.

    python examples/openai_client.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in OPENAI_API_KEY.
"""

import os
import sys

from openai import OpenAI

QUESTION = "Name three rivers."


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=16,
        temperature=0,
        extra_body={"sps2": {"attention": "exact"}},  # or balanced, or fast
    )
    print(answer.choices[0].message.content)
    if answer.usage and answer.usage.model_extra:
        print("SP degree of prefill:", answer.usage.model_extra["sps2"]["sp_degree"])

    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
