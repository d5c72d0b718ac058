"""Connects to a server, and puts the load on it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sps2.cli.bench.serve.backends import Backend, OpenAI, Sdk
from sps2.cli.bench.serve.http import Http
from sps2.cli.bench.serve.jobs import Job
from sps2.cli.bench.serve.load import Load, warm_up
from sps2.cli.bench.serve.prompts import VOCABULARY, Prompts
from sps2.cli.bench.serve.report import show_progress
from sps2.cli.target import reachable
from sps2.common.client import AsyncClient
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.models import locate

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer

POLL_S = 0.5
CONNECT_S = 10.0


@dataclass(frozen=True)
class Target:
    """The server to ask.

    url: of an HTTP server, or of a gateway's bus for the SDK; None is the cluster that is up, or
    that of `name` or `config`. fields: what each request has besides prompt and length.
    """

    is_sdk: bool
    url: str | None
    endpoint: str
    headers: Mapping[str, str]
    is_insecure: bool
    model: str | None
    fields: Mapping[str, Any]
    name: str | None
    config: Path | None

    def connect(self) -> Backend:
        if not self.is_sdk:
            assert self.url is not None
            http = Http(self.url, self.headers, self.is_insecure)
            return OpenAI(http, self.endpoint, self.model or "", self.fields)
        if self.url is not None:
            if not self.url.startswith("tcp://"):
                raise Invalid(f"the SDK's address is such as tcp://127.0.0.1:8001, not {self.url}")
            client = AsyncClient(self.url, connect_s=CONNECT_S)
        else:
            cluster = reachable(self.name, self.config)
            client = AsyncClient(cluster.gateway_addresses, cluster.bus, connect_s=CONNECT_S)
        return Sdk(client, self.fields, self.model or "")


@dataclass(frozen=True)
class Order:
    """How to run: how long to wait for the server, requests to warm it up, and so on."""

    ready_s: float
    warmups: int
    max_concurrency: int | None
    is_shown: bool


async def run(target: Target, order: Order, jobs: Sequence[Job]) -> tuple[str, Load]:
    """The model's name, and the load after its run.

    Raises:
        Refused, PeerLost: the server does not answer.
        Invalid: it has another model, or does not take the first request of a warm-up.
    """
    backend = target.connect()
    try:
        models = await _models(backend, order.ready_s)
        model = target.model or next(iter(models), "")
        if isinstance(backend, OpenAI):
            backend.model = model
        if order.warmups:
            error = await warm_up(backend, jobs[0], order.warmups, order.max_concurrency)
            if error:
                raise Invalid(f"the server did not answer a request of the warm-up: {error}")
        load = Load(jobs, backend, order.max_concurrency)
        shown = asyncio.create_task(show_progress(load, order.is_shown))
        try:
            await load.run()
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
        return model, load
    finally:
        await backend.close()


async def _models(backend: Backend, ready_s: float) -> list[str]:
    deadline_s = time.perf_counter() + ready_s
    while True:
        try:
            return await backend.models()
        except (Refused, PeerLost):
            if time.perf_counter() > deadline_s:
                raise
            await asyncio.sleep(POLL_S)


def tokenizer_of(name: str | None) -> "Tokenizer | None":
    """The tokenizer of a model on this machine. Raises Invalid if it is not there."""
    if name is None:
        return None
    from sps2.common.text.tokens import Tokenizer  # needs sps2[server]

    folder = Path(name).expanduser()
    return Tokenizer(folder if folder.is_dir() else locate(name))


def prompts_of(tokenizer: "Tokenizer | None", vocabulary: int | None, seed: int) -> Prompts:
    """Prompts for a tokenizer: no special tokens, and words that are one token each."""
    if tokenizer is None:
        return Prompts(seed, vocabulary or VOCABULARY)
    encode, size = tokenizer.encode, tokenizer.vocab_size
    above = [index for index in tokenizer.special.values() if index > size // 2]
    return Prompts(seed, vocabulary or min([size, *above]), lambda word: _is_token(encode, word))


def _is_token(encode: Any, word: str) -> bool:
    return len(encode(word, False)) == 1
