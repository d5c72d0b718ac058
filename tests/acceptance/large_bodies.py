"""Bodies of 16 MB beside a stream: what others wait, and what the gateway's memory comes to.

    python tests/acceptance/large_bodies.py http://127.0.0.1:8000 PID_OF_THE_GATEWAY [BODIES]

Exits with 1 unless `/health` was always answered within 0.5 s, and the gateway took less than
400 MB. Both depend on the machine: so it is no test of the suite.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

HEALTH_S, MEMORY_MB = 0.5, 400
SIZE = 15 << 20
BODIES: dict[str, Callable[[], object]] = {
    "a text": lambda: "x " * (SIZE // 2),
    "a text of long words": lambda: "internationalisation " * (SIZE // 21),
    "token ids": lambda: [300] * (SIZE // 5),
    "prompts": lambda: ["a"] * (SIZE // 5),
    "a text beyond ASCII": lambda: "\N{GRINNING FACE} x" * (SIZE // 14),
}


def peak_mb(pid: int) -> float:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def worst(http: httpx.AsyncClient, waits: list[float]) -> None:
    while True:
        since_s = time.monotonic()
        await http.get("/health")
        waits.append(time.monotonic() - since_s)
        await asyncio.sleep(0.01)


async def stream(http: httpx.AsyncClient, gaps: list[float]) -> None:
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    while True:
        last_s = time.monotonic()
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                gaps.append(time.monotonic() - last_s)
                last_s = time.monotonic()


async def main(url: str, pid: int, count: int) -> int:
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        waits: list[float] = []
        gaps: list[float] = []
        over = False
        watching = [
            asyncio.create_task(worst(http, waits)),
            asyncio.create_task(stream(http, gaps)),
        ]
        await asyncio.sleep(3)
        print(
            f"before: /health {max(waits):.3f} s, stream {max(gaps):.3f} s, {peak_mb(pid):.0f} MB"
        )
        for name, prompt in BODIES.items():
            path = Path("/tmp") / f"sps2-large-body-{pid}.json"
            path.write_text(json.dumps({"prompt": prompt(), "max_tokens": 1}))
            for bodies in (1, count):
                await asyncio.sleep(2)  # what waited for this process to write is over
                waits.clear()
                gaps.clear()
                since_s = time.monotonic()
                curls = [
                    await asyncio.create_subprocess_exec(
                        *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
                        *("-H", "Content-Type: application/json", "-H", "Expect:"),
                        *("--data-binary", f"@{path}", f"{url}/v1/completions"),
                        stdout=asyncio.subprocess.PIPE,
                    )
                    for _ in range(bodies)
                ]
                said = await asyncio.gather(*(each.communicate() for each in curls))
                codes = Counter(out.decode() for out, _ in said)
                print(
                    f"{bodies} x {path.stat().st_size / 1e6:.0f} MB, {name}: {dict(codes)} in "
                    f"{time.monotonic() - since_s:.1f} s; /health {max(waits):.3f} s, "
                    f"stream {max(gaps, default=0):.3f} s, peak {peak_mb(pid):.0f} MB",
                    flush=True,
                )
                over |= max(waits) > HEALTH_S or peak_mb(pid) > MEMORY_MB
            path.unlink()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    return int(over)


if __name__ == "__main__":
    url, pid, *rest = sys.argv[1:]
    sys.exit(asyncio.run(main(url, int(pid), int(rest[0]) if rest else 16)))
