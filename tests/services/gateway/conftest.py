"""A gateway with real sockets, in front of a scheduler and an owner that play their parts."""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from sps2.common.bus.peer import Server
from sps2.common.client import AsyncClient
from sps2.common.config import Bus, Cluster, Directory, Gateway, Kv, Scheduler
from sps2.common.errors import ServiceError
from sps2.common.messages import (
    Describe,
    Exchanged,
    Finished,
    FirstToken,
    FleetStatus,
    Follow,
    Greet,
    Greeted,
    Info,
    Leases,
    ListLeases,
    Placed,
    Placement,
    Predict,
    Predicted,
    Progress,
    Recall,
    Recalled,
    RequestStatus,
    Scheme,
    ShardStatus,
    ShowFleet,
    Submit,
    Token,
    TokenLogprobs,
    TraceSpan,
)
from sps2.common.spans import Span
from sps2.common.tracing import Recorder, context_of
from sps2.services.compatibility import greeted
from sps2.services.gateway.http import server as http
from sps2.services.gateway.main import Parts
from sps2.services.run import About

BUS = Bus(heartbeat_s=0.2)
END = 256
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_tiny`."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny(path)
    return path


def write_tiny(path: Path) -> None:
    """Make a model folder whose tokens are single bytes, and <|end|>, and <|begin|>."""
    path.mkdir()
    alphabet = _byte_alphabet()
    tokenizer = Tokenizer(models.BPE({alphabet[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|begin|>"])
    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 200,
        "eos_token_id": END,
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file({"a": numpy.zeros(2, numpy.float32)}, path / "model.safetensors")


KV_TOKEN_BYTES = 3 * 2 * 2 * 2 * 4


@dataclass
class Play:
    """What the scheduler and the owner do; tests change it.

    `answer` gives the text for a submitted prompt; `gates` hold a stage back until set.
    """

    answer: Callable[[str], str] = lambda prompt: "Hello, world."
    fail: dict[str, ServiceError] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    waiting_for: str = ""
    serving: bool = False
    """Whether the cluster serves although it waits for something."""
    ends_with_eos: bool = True
    full: bool = False
    """Whether there is no room for a request that is predicted."""
    progress: list[Progress] = field(default_factory=list)
    """Told to those who ask."""
    submitted: list[Submit] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    follows: int = 0
    clock_s: float = 0.0
    """By how much the scheduler's clock is ahead."""

    async def stage(self, name: str) -> None:
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.fail:
            raise self.fail[name]

    def tokens(self, submit: Submit) -> list[Token]:
        sampling = submit.sampling
        prompt = struct.unpack(f"<{len(submit.prompt) // 4}i", submit.prompt)
        prompt = prompt[: len(prompt) - sampling.answered]
        text = self.answer(bytes(each for each in prompt if each < 256).decode())
        ids = [*text.encode(), *([END] if self.ends_with_eos else [])]
        tokens = []
        for index, token in enumerate(ids):
            logprobs = None
            if sampling.logprobs is not None:
                logprobs = TokenLogprobs(
                    -0.25, ((token, -0.25), (ord("?"), -1.5))[: sampling.logprobs]
                )
            finish = "length" if index == sampling.max_tokens - 1 else None
            if token in sampling.stop_token_ids:
                finish = "stop"
            elif finish is None and index == len(ids) - 1:
                finish = "length"
            tokens.append(Token(index, token, logprobs, finish))
            if finish:
                break
        return tokens


class TestScheduler:
    """Speaks as the scheduler does."""

    __test__ = False

    def __init__(self, play: Play) -> None:
        self.play = play
        self.owner_address = ""
        self.jobs: dict[str, tuple[Submit, asyncio.Event]] = {}

    async def submit(
        self, request: Submit
    ) -> AsyncIterator[Placed | Progress | FirstToken | Finished]:
        play = self.play
        play.submitted.append(request)
        done = asyncio.Event()
        self.jobs[request.request] = (request, done)
        try:
            await play.stage("queue")
            prompt = len(request.prompt) // 4
            places = (
                Placement("decode-0", Span(0, prompt // 2), 1),
                Placement("decode-1", Span(prompt // 2, prompt), 1),
            )
            yield Placed(
                1,
                "decode-1",
                self.owner_address,
                request.options.sp_degree or 2,
                places,
                "exact",
                Scheme("gather"),
                {"kv": 90},
                queued_s=0.25,
            )
            for each in play.progress if request.progress else ():
                yield each
            await play.stage("prefill")
            tokens = play.tokens(request)
            prompt_logprobs = None
            if request.sampling.prompt_logprobs is not None:
                prompt_logprobs = (None, *[TokenLogprobs(-0.5, ((65, -0.25),), 2)] * (prompt - 1))
            ranks = (
                Exchanged({"kv": 60}, 2.0, 1.0, 1.0, 0.5),
                Exchanged({"kv": 40}, 1.0, 0.5, 1.0, 0.5, saved_bytes=20),
            )
            first = tokens[request.sampling.answered]
            sums = struct.pack("<2f", 3, 0), struct.pack("<2f", 0, 4)
            pooled = sums if request.sampling.pooling else ()
            yield FirstToken(first, prompt_logprobs, 0.01, ranks, pooled=pooled)
            if first.finish is None:
                await done.wait()
            await play.stage("finish")
            play.finished.append(request.request)
            yield Finished(len(tokens), 30, 12, 1000, 500)
        finally:
            if request.request not in play.finished:
                play.cancelled.append(request.request)

    async def predict(self, request: Predict) -> Predicted:
        await self.play.stage("predict")
        self.play.submitted.append(request.submit)
        if self.play.full:
            return Predicted("room for its KV", 0.0, 0.0, 0.02)
        return Predicted("", 0.5, 0.25, None, 2, Scheme("gather"), {"kv": 90, "prefix_q": 10}, 3)

    async def show_fleet(self, request: ShowFleet) -> FleetStatus:
        shards = (
            ShardStatus("decode-1", "decode", "ready", 1, self.owner_address),
            ShardStatus("decode-2", "decode", "lost"),
        )
        running = tuple(
            RequestStatus(name, "decode", 1, 0.0, 1)
            for name in self.jobs
            if name not in (*self.play.finished, *self.play.cancelled)
        )
        missing = self.play.waiting_for
        return FleetStatus(shards, running, missing, self.play.serving or not missing)

    async def describe(self, request: Describe) -> Info:
        return Info("scheduler", 1, "0", "ready")

    async def greet(self, request: Greet) -> Greeted:
        told = greeted("scheduler", request)
        return replace(told, monotonic_s=told.monotonic_s + self.play.clock_s)

    async def recall(self, request: Recall) -> Recalled:
        now_s = time.monotonic() + self.play.clock_s
        queues = []
        for name, (submit, _) in self.jobs.items():
            if name.startswith(request.answer) and (context := context_of(submit.traceparent)):
                where = {"start_s": now_s - 0.01, "stop_s": now_s, "service": "scheduler"}
                queues.append(TraceSpan("5" * 16, context.span, "queue", **where))
        return Recalled(tuple(queues))


class TestOwner:
    """Speaks as a decode shard does."""

    __test__ = False

    def __init__(self, play: Play, scheduler: TestScheduler) -> None:
        self.play = play
        self.scheduler = scheduler

    async def follow(self, request: Follow) -> AsyncIterator[Token]:
        self.play.follows += 1
        submit, done = self.scheduler.jobs[request.request]
        await self.play.stage("decode")
        for token in self.play.tokens(submit)[request.start :]:
            try:
                await self.play.stage(f"token {token.index}")
            except ServiceError as error:
                self.play.fail["finish"] = error
                done.set()
                raise
            yield token
        done.set()


class TestDirectory:
    """Speaks as the KV directory does."""

    __test__ = False

    async def list_leases(self, request: ListLeases) -> Leases:
        return Leases((), {"decode-1": 4}, {"decode-1": 8}, 2)


@dataclass
class Door:
    """Where the gateway is reached, and what is behind it."""

    url: str
    bus: str
    play: Play
    parts: Parts
    owner: Server
    scheduler: Server
    front: http.Front

    def client(self) -> AsyncClient:
        return AsyncClient(self.bus, BUS, timeout_s=60)


@asynccontextmanager
async def opened(folder: Path, away_s: float = 0.0, **sections: object) -> AsyncIterator[Door]:
    """The whole set-up; `sections` change the cluster's configuration.

    Args:
        away_s: see `Readiness`.
    """
    async with several_opened(folder, 1, away_s, **sections) as (door,):
        yield door


@asynccontextmanager
async def several_opened(
    folder: Path, count: int, away_s: float = 0.0, **sections: object
) -> AsyncIterator[list[Door]]:
    """As `opened`, with several gateways, each with an HTTP port of its own here."""
    play = Play()
    scheduler = TestScheduler(play)
    keyed: Bus = sections.get("bus", BUS)  # type: ignore[assignment]
    pages = About("decode-1", counters=lambda: {"kv_pages": 3.0}, started=True)
    owner = Server([TestOwner(play, scheduler), pages], keyed)
    scheduler.owner_address = await owner.start("tcp://127.0.0.1:0")
    servers = [
        Server(scheduler, keyed),
        Server([TestDirectory(), About("kvdir", started=True)], keyed),
    ]
    ports = [int((await each.start("tcp://127.0.0.1:0")).rpartition(":")[2]) for each in servers]
    settings = {
        "model": str(folder),
        "bus": BUS,
        "scheduler": Scheduler(bus_port=ports[0]),
        "kvdir": Directory(bus_port=ports[1]),
        "kv": Kv(),
    }
    cluster = Cluster(**settings | sections)  # type: ignore[arg-type]
    listeners = [http.bind("127.0.0.1", 0) for _ in range(count)]
    shared = listeners[0].getsockname()[1]  # names the place where the gateways meet
    gateway = replace(cluster.gateway, processes=count, port=shared)
    cluster = replace(cluster, gateway=gateway)
    async with AsyncExitStack() as stack:
        doors = []
        for number, listener in enumerate(listeners):
            name = cluster.gateway_names()[number]
            about = About(name, rank=number, traces=Recorder(name, 8))
            parts = Parts(cluster, about, folder, 0.1, away_s)
            about.started = True
            scheme = cluster.http_url.partition(":")[0]
            url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
            dropped = parts.metrics.connection_dropped
            bus = await stack.enter_async_context(parts.running("tcp://127.0.0.1:0"))
            serving = http.serving(parts.app, listener, cluster.gateway, dropped)
            front = await stack.enter_async_context(serving)
            while parts.readiness.waiting_for():
                await asyncio.sleep(0.01)
            doors.append(Door(url, bus, play, parts, owner, servers[0], front))
        yield doors
    for server in (owner, *servers):
        await server.close()


@pytest.fixture
async def door(folder: Path) -> AsyncIterator[Door]:
    async with opened(folder) as door:
        yield door


@pytest.fixture
def open_door(folder: Path) -> Callable[..., object]:
    """As `door`, with settings of the gateway: `async with open_door(max_requests=1) as door`."""
    return lambda **settings: opened(folder, gateway=Gateway(**settings))


def _byte_alphabet() -> dict[int, str]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(0x100 + place) for place, byte in enumerate(others)
    }
