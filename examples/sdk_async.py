"""The SDK with asyncio: questions at once, and one that is given up after a while.

    python examples/sdk_async.py [tcp://127.0.0.1:8001]

A cluster with keys wants a client's key, whose file SPS2_KEYS names.
"""

import asyncio
import sys

from sps2 import AsyncClient, ServiceError

ADDRESS = "tcp://127.0.0.1:8001"

QUESTIONS = ["Name three rivers.", "Name three lakes.", "Name three seas."]


async def ask(client: AsyncClient, question: str) -> str:
    answer = await client.chat(
        [{"role": "user", "content": question}], max_tokens=16, temperature=0
    )
    return f"{question} {answer.choices[0].message.content}"


async def main() -> None:
    async with AsyncClient(sys.argv[1] if len(sys.argv) > 1 else ADDRESS) as client:
        for answer in await asyncio.gather(*(ask(client, question) for question in QUESTIONS)):
            print(answer)

        try:
            async with asyncio.timeout(0.01):  # cancelling the task cancels the request everywhere
                await client.complete("And then", max_tokens=400, ignore_eos=True)
        except TimeoutError:
            print("given up")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ServiceError as error:
        sys.exit(f"the cluster says: {error}")
