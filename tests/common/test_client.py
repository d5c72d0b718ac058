"""The SDK against a service that answers as a gateway does."""

import asyncio
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from sps2.common import api, client
from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    ChatRequest,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
    Delta,
    Detokenize,
    ListModels,
    Model,
    Models,
    Text,
    Tokenize,
    Tokens,
    Usage,
)
from sps2.common.api.requests import Harmless
from sps2.common.api.tolerance import only_of
from sps2.common.client import AsyncClient, Client
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused
from sps2.common.messages import CancelRequest, ClusterStatus, Done, ShowCluster
from sps2.common.rpc import Server

BUS = Bus(beat_s=0.2)
HEAD = {"id": "cmpl-1", "created": 1, "model": "m", "system_fingerprint": "f"}


@dataclass
class Answering:
    """Says the prompt back, letter by letter; at "!" it stops and waits, at "?" it refuses."""

    left: list[str] = field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        text = str(request.prompt)
        try:
            for letter in text:
                if letter == "!":
                    await asyncio.Event().wait()
                if letter == "?":
                    raise Refused("full", 7)
                yield CompletionChunk(**HEAD, choices=[CompletionChoice(0, letter)])
            yield CompletionChunk(**HEAD, choices=[], usage=Usage(1, len(text), 2))
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(text)
            raise

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        for letter in str(request.messages[-1].content):
            yield ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(content=letter))])
        yield ChatChunk(**HEAD, choices=[], usage=Usage(1, 2, 3))

    async def tokenize(self, request: Tokenize) -> Tokens:
        return Tokens([ord(each) for each in request.prompt or ""], 0, 0)

    async def detokenize(self, request: Detokenize) -> Text:
        return Text("".join(map(chr, request.tokens)))

    async def list_models(self, request: ListModels) -> Models:
        return Models([Model(id="m", created=1, max_model_len=5)])

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        return ClusterStatus("m", "0", True, "", (), (), (), (), 0)

    async def cancel_request(self, request: CancelRequest) -> Done:
        raise Invalid(f"no request {request.request}", "request")


class Thread:
    """A server on a loop of its own, so that code without asyncio can be tested."""

    def __enter__(self):
        self.answering = Answering()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = Server(self.answering, BUS)
        self.address = self.run(self.server.start("tcp://127.0.0.1:0"))
        return self

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def __exit__(self, *_):
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def there():
    with Thread() as there:
        yield there


@pytest.fixture
async def far(there):
    async with AsyncClient(there.address, BUS, deadline_s=5) as far:
        yield far


@pytest.fixture
def near(there):
    with Client(there.address, BUS, deadline_s=5) as near:
        yield near


async def test_async_calls(far):
    assert (await far.complete("abc")).choices[0].text == "abc"
    assert (await far.chat([{"role": "user", "content": "hey"}])).choices[
        0
    ].message.content == "hey"
    assert [c.choices[0].text async for c in far.complete_stream("abc") if c.choices] == [*"abc"]
    assert await far.tokenize("ab") == [97, 98]
    assert await far.detokenize([97, 98]) == "ab"
    assert (await far.models())[0].id == "m"
    assert (await far.status()).ready


def test_sync_calls(near):
    assert near.complete("abc").choices[0].text == "abc"
    assert near.chat([{"role": "user", "content": "hey"}]).choices[0].message.content == "hey"
    assert [c.choices[0].text for c in near.complete_stream("abc") if c.choices] == [*"abc"]
    chunks = near.chat_stream([{"role": "user", "content": "hey"}])
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hey"
    assert near.tokenize("ab") == [97, 98]
    assert near.detokenize([97, 98]) == "ab"
    assert near.models()[0].id == "m"
    assert near.status().ready


async def test_errors_arrive_as_they_were_raised(far):
    with pytest.raises(Refused) as caught:
        await far.complete("a?")
    assert caught.value.retry_after_s == 7
    with pytest.raises(Invalid, match="cmpl-9"):
        await far.cancel("cmpl-9")
    with pytest.raises(Invalid) as wrong:
        await far.complete("a", temperature=3)
    assert wrong.value.field == "temperature"


def test_sync_errors(near):
    with pytest.raises(Refused):
        near.complete("a?")
    with pytest.raises(Refused):
        list(near.complete_stream("a?"))
    with pytest.raises(Invalid):
        near.cancel("cmpl-9")


async def test_leaving_a_stream_cancels(far, there):
    async for _ in far.complete_stream("ab!"):
        break
    await left(there)


async def test_cancelling_a_call_cancels(far, there):
    task = asyncio.create_task(far.complete("ab!"))
    while not there.server.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await left(there)


async def test_leaving_a_sync_stream_cancels(near, there):
    for _ in near.complete_stream("ab!"):
        break
    await left(there)


async def left(there):
    async with asyncio.timeout(5):
        while there.answering.left != ["ab!"]:
            await asyncio.sleep(0.01)


def test_closing_ends_what_is_in_work(there):
    near = Client(there.address, BUS)
    stream = near.complete_stream("ab!")
    next(stream)
    near.close()
    near.close()
    with pytest.raises(PeerLost):
        list(stream)


def test_a_gateway_that_is_not_there_is_waited_for_until_the_deadline():
    with Client("tcp://127.0.0.1:9", BUS, deadline_s=0.1) as nobody, pytest.raises(Cancelled):
        nobody.status()


def test_an_address_that_is_none():
    with pytest.raises(Invalid):
        Client("localhost")


def test_parameters_are_those_of_the_requests():
    for parameters, request, required in (
        (client.CompletionParameters, CompletionRequest, "prompt"),
        (client.ChatParameters, ChatRequest, "messages"),
    ):
        harmless = set(Harmless.__struct_fields__) | set(only_of(request)) | {"best_of"}
        fields = set(request.__struct_fields__) - {required, "stream", "stream_options"}
        assert set(typing.get_type_hints(parameters)) == fields - harmless | {"user"}
    assert set(api.Message.__struct_fields__) >= set(typing.get_type_hints(client.Turn))


def test_imports_neither_torch_nor_a_web_framework():
    code = (
        "import sys, sps2.common.client\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
