"""What happens to 4 running requests when each service in turn is killed, and after disconnects.

    python tests/acceptance/losses.py

For every service: 4 requests run, the service is killed with SIGKILL; each request must end within
10 s of the kill by an error, or complete; the launcher must bring the service back and the next
request must be served; no page may stay behind. Then clients leave while their request is queued,
prefilled and decoded: all pages must be free within 1 s.
"""

import asyncio
import os
import signal
import sys
import time

from passage import passage

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

PORT = 18600
ADDRESS = config.load(port=PORT).gateway_address
MODEL = "smollm2-135m"


async def until(condition, seconds: float) -> float | None:  # type: ignore[no-untyped-def]
    """Seconds until the condition held, None if it did not in time."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if await condition():
                return time.monotonic() - started
        except ServiceError:
            pass
        await asyncio.sleep(0.05)
    return None


async def request(prompt: list[int], tokens: int) -> tuple[str, float]:
    async with AsyncClient(ADDRESS) as client:
        try:
            answer = await client.complete(
                prompt, max_tokens=tokens, ignore_eos=True, temperature=0
            )
        except ServiceError as error:
            return f"{type(error).__name__}: {error}", time.monotonic()
        assert answer.usage.completion_tokens == tokens
        return "completed", time.monotonic()


async def status() -> ClusterStatus:
    async with AsyncClient(ADDRESS) as client, asyncio.timeout(5):
        return await client.status()


async def everything_free() -> bool:
    seen = await status()
    return not seen.leases and all(
        shard.pages_free == shard.pages for shard in seen.shards if shard.role == "decode"
    )


async def pid_of(service: str) -> int:
    return next((each.pid for each in (await status()).services if each.service == service), 0)


async def kill_each(text: list[int]) -> bool:
    good = True
    for service in (
        "prefill-1",
        "decode-1",
        "decode-0",
        "kvdir",
        "scheduler",
        "gateway",
        "prefill-0",
    ):
        while not (pid := await pid_of(service)):  # it is about to report itself
            await asyncio.sleep(0.1)
        sizes = [(3000, 60), (600, 150), (5000, 30), (40, 200)]
        running_now = [asyncio.create_task(request(text[:size], tokens)) for size, tokens in sizes]
        await asyncio.sleep(1.5)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()

        async def named(service: str = service, pid: int = pid) -> bool:
            seen = await status()
            return any(
                each.service == service and (each.state == "lost" or each.pid != pid)
                for each in seen.services
            )

        noticed = await until(named, 10)
        outcomes = await asyncio.gather(*running_now)
        late = [
            outcome for outcome, ended in outcomes if outcome != "completed" and ended - killed > 10
        ]

        async def ready() -> bool:
            seen = await status()
            return seen.ready and not seen.missing

        back = await until(ready, 60)
        again, _ = await request(text[:500], 8)
        free = await until(everything_free, 10)
        leaked = (await status()).leaked_pages
        passed = not late and back is not None and again == "completed" and free is not None
        good &= passed and not leaked and noticed is not None
        print(
            f"{service}: {'ok' if passed else 'FAILED'}; noticed after "
            f"{noticed if noticed is None else round(noticed, 2)} s, ready again after "
            f"{back if back is None else round(back, 1)} s, next request {again}, leaked {leaked}"
        )
        for outcome, ended in outcomes:
            print(f"    {outcome} ({ended - killed:+.1f} s)", flush=True)
    return good


async def disconnect_each(text: list[int]) -> bool:
    good = True
    for stage, busy, wait_s in (("queued", 4, 0.6), ("prefill", 0, 0.8), ("decode", 0, 0.0)):
        others = [asyncio.create_task(request(text[:5000], 4)) for _ in range(busy)]
        async with AsyncClient(ADDRESS) as client:
            await asyncio.sleep(0.3 if busy else 0)
            prompt = text[: 200 if stage == "decode" else 5000]
            stream = client.complete_stream(prompt, max_tokens=2000, ignore_eos=True)
            task = asyncio.ensure_future(anext(stream))
            if stage == "decode":
                await task
                await asyncio.sleep(0.5)
            else:
                await asyncio.sleep(wait_s)
            seen = [each.stage for each in (await client.status()).requests]
            for other in others:
                other.cancel()
            task.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)
            await stream.aclose()
        took = await until(everything_free, 5)
        leaked = (await status()).leaked_pages
        passed = took is not None and took < 1 and not leaked and stage in seen
        good &= passed
        print(
            f"left while {stage} (stages then: {seen}): pages free after "
            f"{took and round(took, 2)} s, leaked {leaked}: {'ok' if passed else 'FAILED'}",
            flush=True,
        )
    return good


async def check() -> bool:
    text = Tokenizer(locate(MODEL)).encode(passage(8000))
    good = await disconnect_each(text)
    return await kill_each(text) and good


def main() -> int:
    with running_cluster(name="acceptance", port=PORT, model=MODEL, prefill=2, decode=2):
        good = asyncio.run(check())
    print("all well" if good else "FAILURES")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
