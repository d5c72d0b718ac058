"""Conversations of agents against a server: the load of `spsctl bench serve`."""

import asyncio
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from measures import MS, Values
from peers.peer import PeerFailed
from peers.server import Server

from sps2.cli.workload import sources

SPSCTL = Path(sysconfig.get_path("scripts"), "spsctl")
SCALE = 1 / 16
LONGEST = 7000
"""Tokens of a prompt; turns beyond are left out."""
SESSIONS, REQUESTS = 8, 48
THINK_SCALE = 0.1
FIGURES = {
    f"{name}_{figure}_ms": f"{figure.upper()} {shown}, {unit}"
    for figure, unit in (("ttft", "s"), ("tpot", "ms"))
    for name, shown in (("mean", "mean"), ("p50", "p50"), ("p90", "p90"), ("p99", "p99"))
}


@dataclass(frozen=True)
class Conversations:
    """What is sent, of a file as docs/bench-serve.md describes."""

    file: Path

    async def measure(self, peer: Server) -> Values:
        """Send it once. `of the ideal`: of the tokens that a turn shares with those before it."""
        with TemporaryDirectory() as folder:
            result = Path(folder, "result.json")
            await self._serve(peer, result)
            found = msgspec.json.decode(await asyncio.to_thread(result.read_bytes))
        if found["failed"] or found["unsent"]:
            raise PeerFailed(f"{found['failed']} requests failed: {found['error_counts']}")
        values = {
            shown: found[name] / (MS if shown.endswith(", s") else 1)
            for name, shown in FIGURES.items()
        }
        cached = found["total_cached_tokens"]
        return values | {
            "output tokens/s": found["output_throughput"],
            "cached, of the input": cached / found["total_input_tokens"],
            "cached, of the ideal": cached / self._ideal(),
        }

    async def _serve(self, peer: Server, result: Path) -> None:
        argv = [
            *(str(SPSCTL), "bench", "serve", "--backend", "openai", "--base-url", peer.url),
            *("--dataset-name", sources.AGENTS, "--dataset-path", str(self.file)),
            *("--length-scale", str(SCALE), "--longest-prompt", str(LONGEST)),
            *("--num-sessions", str(SESSIONS), "--num-prompts", str(REQUESTS)),
            *("--think-scale", str(THINK_SCALE), "--metric-percentiles", "50,90,99"),
            *("--save-result", "--result-dir", str(result.parent)),
            *("--result-filename", result.name),
        ]
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if process.returncode:
            raise PeerFailed(said.decode())

    def _ideal(self) -> int:
        """Tokens whose KV was computed for an earlier turn, if nothing were ever dropped."""
        workload = sources.find(
            str(self.file),
            limit=REQUESTS,
            scale=SCALE,
            longest=LONGEST,
            sessions=SESSIONS,
            think_scale=THINK_SCALE,
        )
        tokens, seen = 0, set[int]()
        for turn in workload.turns:
            shared = 0
            for block in turn.blocks:
                if block not in seen:
                    break
                shared += workload.block_tokens
            tokens += min(shared, turn.prompt_tokens - 1)
            seen.update(turn.blocks)
        return tokens
