"""The SDK against a service that answers as a gateway does."""

import asyncio
import socket
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
from sps2.common.api.drawing import Drawing
from sps2.common.api.harmless import Harmless
from sps2.common.api.unsupported_fields import only_of
from sps2.common.bus.peer import Server
from sps2.common.bus.wire import WINDOW
from sps2.common.client import AsyncClient, Client
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused
from sps2.common.messages import CancelRequest, ClusterStatus, Done, ShowCluster

BUS = Bus(heartbeat_s=0.2)
HEAD = {"id": "cmpl-1", "created": 1, "model": "m", "system_fingerprint": "f"}


@dataclass
class Answering:
    """Says the prompt back, letter by letter; at "!" it stops and waits, at "?" it refuses."""

    left: list[str] = field(default_factory=list)
    sent: int = 0
    messages: list[api.Message] = field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        text = str(request.prompt)
        try:
            for letter in text:
                if letter == "!":
                    await asyncio.Event().wait()
                if letter == "?":
                    raise Refused("full", 7)
                self.sent += 1
                yield CompletionChunk(**HEAD, choices=[CompletionChoice(0, letter)])
            yield CompletionChunk(**HEAD, choices=[], usage=Usage(1, len(text), 2))
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(text)
            raise

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        self.messages = request.messages
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
    async with AsyncClient(there.address, BUS, timeout_s=60) as far:
        yield far


@pytest.fixture
def near(there):
    with Client(there.address, BUS, timeout_s=60) as near:
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
    async with asyncio.timeout(60):
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.status(),
        lambda client: client.complete("x"),
        lambda client: client.chat("x"),
        lambda client: list(client.chat_stream("x")),
    ],
)
def test_a_gateway_that_is_not_there_is_waited_for_so_long(ask):
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        Client(address, BUS, connect_s=0.2) as nobody,
        pytest.raises(PeerLost, match=f"nobody answers at {address}.* the cluster is up"),
    ):
        ask(nobody)


def test_a_host_that_nobody_knows_is_told_at_once():
    with (
        Client("tcp://nohost.invalid:8001", BUS, connect_s=3600) as lost,
        pytest.raises(PeerLost, match=r"'nohost\.invalid' of tcp://nohost\.invalid:8001"),
    ):
        lost.complete("x")


async def answer_in_http(reader, writer):
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\nInvalid HTTP request received.")
    writer.close()


async def answer_in_smtp(reader, writer):
    writer.write(b"220 mail.example ESMTP")
    await reader.read(100)
    writer.close()


async def hang_up(reader, writer):
    writer.close()


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (answer_in_http, "speaks HTTP"),
        (answer_in_smtp, "answers at .* is not the bus of a gateway"),
        (hang_up, "the gateway behind it is away, or it is not the bus of a gateway"),
    ],
)
async def test_the_port_of_something_else(there, said):
    server = await asyncio.start_server(there, "127.0.0.1", 0)
    address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(address, BUS, connect_s=60) as mistaken:
        for _ in range(2):
            with pytest.raises(PeerLost, match=said):
                await mistaken.complete("x")


def test_a_whole_answer_has_its_time(there):
    with Client(there.address, BUS, timeout_s=0.3) as hasty:
        with pytest.raises(Cancelled, match=r"took longer than 0\.3 s"):
            hasty.complete("!")
        with pytest.raises(Cancelled):
            list(hasty.complete_stream("ab!"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [("timeout_s", "timeout_s"), ("timeout", "timeout_s"), ("connect_s", "connect_s")],
)
def test_an_argument_of_the_client_is_no_parameter_of_a_call(near, given, meant):
    for call in (near.complete, near.chat):
        with pytest.raises(Invalid, match=f"`{given}` .* Client\\({meant}=30\\)") as caught:
            call("a text", **{given: 0.3})
        assert (caught.value.field, caught.value.code) == (given, "unknown_field")
    for kind in (Client, AsyncClient):
        assert meant in kind.__init__.__doc__


def test_a_conversation_of_answers_and_texts(near, there):
    messages = [{"role": "user", "content": "hey"}]
    messages.append(near.chat(messages).choices[0].message)
    messages.append(api.Message("user", "ho"))
    assert near.chat(messages).choices[0].message.content == "ho"
    assert [(each.role, each.content) for each in there.answering.messages] == [
        ("user", "hey"),
        ("assistant", "hey"),
        ("user", "ho"),
    ]
    assert near.chat("a text").choices[0].message.content == "a text"


def test_a_slow_consumer_is_not_run_away_from(near, there):
    stream = near.complete_stream("a" * 5000)
    next(stream)
    for _ in range(100):  # the service has had as many occasions to send more
        near.status()
    assert there.answering.sent < 5 * WINDOW
    assert near.status().ready
    assert len(list(stream)) == 5000


def test_an_address_that_is_none():
    with pytest.raises(Invalid):
        Client("localhost")


def test_parameters_are_those_of_the_requests():
    for parameters, request, required in (
        (client.CompletionParameters, CompletionRequest, "prompt"),
        (client.ChatParameters, ChatRequest, "messages"),
    ):
        harmless = set(Harmless.__struct_fields__) - set(Drawing.__struct_fields__)
        harmless |= {*only_of(request), "best_of"}
        fields = set(request.__struct_fields__) - {required, "stream", "stream_options"}
        fields -= {name for name in fields if name.startswith("guided_")}  # `structured_outputs`
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
