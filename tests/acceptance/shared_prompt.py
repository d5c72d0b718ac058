"""Eight requests at once behind one system prompt: computed once, read once a step, each right.

    python tests/acceptance/shared_prompt.py [--requests 8] [--shared 4000] [--own 20]

Each answer is compared with what the same prompt gets alone, without the cache (greedy float32).
"""

import argparse
import asyncio
import sys

from answers import ask, compare
from passage import passage

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.messages import ClusterStatus
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

PORT = 18620
TOKENS = 32


def total(status: ClusterStatus, counter: str) -> float:
    return sum(service.counters.get(counter, 0.0) for service in status.services)


async def run(prompts: list[list[int]], shared: int) -> bool:
    async with AsyncClient(config.load(port=PORT).gateway_address) as client:
        alone = [
            await ask(client, prompt, TOKENS, f"alone {index}")
            for index, prompt in enumerate(prompts)
        ]
        before = await settled(client)
        together = await asyncio.gather(
            *(ask(client, prompt, TOKENS, "together") for prompt in prompts)
        )
        after = await settled(client)
    verdicts = [compare(*pair) for pair in zip(alone, together, strict=True)]
    for answer, verdict in zip(together, verdicts, strict=True):
        cached = answer.usage.prompt_tokens_details.cached_tokens
        print(f"  {cached:5} of {answer.usage.prompt_tokens} tokens cached, answer {verdict}")
    names = ("prefill_tokens", "decode_keys", "decode_keys_read")
    computed, keys, read = (total(after, name) - total(before, name) for name in names)
    least = shared + sum(len(prompt) - shared for prompt in prompts)
    print(f"{computed:.0f} tokens of prompt computed; {least} are different ones")
    print(f"decoding attended to {keys:.0f} keys a layer and read {read:.0f}: {read / keys:.3f}")
    print(f"leaked {after.leaked_pages} pages")
    page = 16 * len(prompts)  # of each but the first the page behind the shared ones
    return (
        not any(verdict.startswith("DIFFERENT") for verdict in verdicts)
        and computed <= least + page
        and read < keys / 2
        and not after.leaked_pages
    )


async def settled(client: AsyncClient) -> ClusterStatus:
    """The status once all pages are free or cached, and counters have been reported."""
    await asyncio.sleep(3)
    return await client.status()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--shared", type=int, default=4000, help="tokens")
    parser.add_argument("--own", type=int, default=20, help="tokens of each")
    options = parser.parse_args()

    text = Tokenizer(locate(options.model)).encode(
        passage(2 * options.shared + options.requests * options.own)
    )
    rest = text[options.shared :]
    prompts = [
        text[: options.shared] + rest[index * options.own : (index + 1) * options.own]
        for index in range(options.requests)
    ]
    shards = {"prefill": 2, "decode": 2}
    with running_cluster(name="shared", port=PORT, model=options.model, dtype="float32", **shards):
        return not asyncio.run(run(prompts, options.shared))


if __name__ == "__main__":
    sys.exit(main())
