"""The ollama package against a cluster: a chat at once, and as a stream.

    python examples/ollama_client.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in OLLAMA_API_KEY.
"""

import sys

from ollama import Client

QUESTION = "Name three rivers."


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
    model = client.list().models[0].model or ""
    messages = [{"role": "user", "content": QUESTION}]
    options = {"num_predict": 16, "temperature": 0}

    answer = client.chat(model, messages, options=options)
    print(answer.message.content)
    print("tokens:", answer.prompt_eval_count, "and", answer.eval_count)

    for part in client.chat(model, messages, options=options, stream=True):
        print(part.message.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
