"""The SDK without asyncio: a completion, a streamed chat, and a stream that is left early.

    python examples/sdk.py [tcp://127.0.0.1:8001]

A cluster with keys wants a client's key, whose file SPS2_KEYS names.
"""

import sys

from sps2 import Client, ServiceError

ADDRESS = "tcp://127.0.0.1:8001"


def main() -> None:
    with Client(sys.argv[1] if len(sys.argv) > 1 else ADDRESS) as client:
        story = client.complete("Once upon a time", max_tokens=16, temperature=0)
        print(story.choices[0].text)
        for place in story.usage.sps2.placements if story.usage.sps2 else ():
            print(f"{place.shard} has tokens {place.span.start} to {place.span.stop}")

        for chunk in client.chat_stream(
            [{"role": "user", "content": "Name three rivers."}], max_tokens=16, temperature=0
        ):
            print("".join(choice.delta.content or "" for choice in chunk.choices), end="")
        print()

        for count, _ in enumerate(client.complete_stream("And then", ignore_eos=True), start=1):
            if count == 5:  # leaving the loop cancels the request everywhere
                break
        print("left after", count, "chunks")


if __name__ == "__main__":
    try:
        main()
    except ServiceError as error:
        sys.exit(f"the cluster says: {error}")
