"""Limits of connections, and TLS."""

import asyncio
import gc
import resource
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
import trustme
from starlette.types import Receive, Scope, Send

from sps2.common.config import Gateway
from sps2.common.errors import Invalid
from sps2.services.gateway.http import connection
from sps2.services.gateway.http import server as http
from sps2.services.gateway.http.sse import Events, Json

from ....waiting import until
from ..conftest import opened

PATIENCE_S = 60.0
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"


async def said(url: str, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes back until the connection ends, while `pieces` are sent."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"G"],
        [b"\r\n"] * 1000,
        [b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 1000],
        [POST + b"content-length: 1000\r\n\r\n", *[b" "] * 900],
        [POST + b"transfer-encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 1000],
        [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\n"],
    ],
)
async def test_who_sends_too_slowly_is_disconnected(folder: Path, pieces: list[bytes]) -> None:
    async with opened(folder, gateway=Gateway(receive_s=0.3)) as door:
        answer = await said(door.url, *pieces, pause_s=0.05)
        assert b"408 Request Timeout" in answer
        assert b"did not come within 0.3 s" in answer
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
            slow = asyncio.Event()
            door.play.gates["decode"] = slow
            asking = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
            await asyncio.sleep(0.5)  # an answer may take longer
            slow.set()
            assert (await asking).status_code == 200


async def test_a_head_that_is_too_large(folder: Path) -> None:
    async with opened(folder, gateway=Gateway(max_header_bytes=4096)) as door:
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
            for _ in range(5):  # it is counted for each request anew
                assert (await client.get("/health", headers={"a": "b" * 3000})).is_success
        one_line = await said(door.url, b"GET / HTTP/1.1\r\n", b"a: " + b"b" * 5000)
        many = await said(door.url, b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 1000)
        path = await said(door.url, b"GET /" + b"a" * 5000)
        for answer in (one_line, many, path):
            assert b"431 Request Header Fields Too Large" in answer
            assert b"over 4096 bytes" in answer


OFFER = (
    POST.decode() + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
).encode()
BODY = b'{"prompt": "x"}'
CHUNKED = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
SIZED, IN_CHUNKS = b"content-length: 15\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [OFFER + SIZED + BODY],
        [OFFER + SIZED, BODY],
        [OFFER[:70], OFFER[70:] + SIZED + BODY[:5], BODY[5:]],
        [OFFER + IN_CHUNKS + CHUNKED],
        [OFFER + IN_CHUNKS, CHUNKED[:7], CHUNKED[7:]],
        [(OFFER + SIZED + BODY) * 3],
        [OFFER.replace(b"h2c", b"websocket") + SIZED + BODY],
    ],
)
async def test_an_offer_of_another_protocol_is_ignored(folder: Path, pieces: list[bytes]) -> None:
    async with opened(folder) as door:
        last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        answer = await said(door.url, *pieces, last, pause_s=0.02)
    count = b"".join(pieces).count(b"POST")
    assert answer.count(b"HTTP/1.1 200 OK") == count + 1, answer
    assert answer.count(b'"text":"Hello, world."') == count


async def test_a_tunnel_is_not_opened(folder: Path) -> None:
    async with opened(folder) as door:
        answer = await said(door.url, b"CONNECT a.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" not in answer.splitlines()[0]


async def test_an_answer_to_http_1_0_has_no_chunks(folder: Path) -> None:
    stream = b'{"prompt": "x", "stream": true}'
    async with opened(folder) as door:
        for body in (stream, BODY):
            head = b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body)
            answer = await said(door.url, head + body)
            top, _, text = answer.partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in top
            assert b"connection: close" in top
            assert text.startswith(b"data: {" if body is stream else b"{")
        head = b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(stream)
        answer = await said(door.url, head + stream)
        assert answer.endswith(b"data: [DONE]\n\n")


async def test_no_http_is_told_so(folder: Path) -> None:
    async with opened(folder) as door:
        answer = await said(door.url, b"HELLO\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"code":"invalid_http"' in answer


@pytest.mark.parametrize("events", [True, False])
async def test_who_takes_nothing_of_an_answer_is_disconnected(events: bool) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[object, None]:
        try:
            while True:
                yield "y" * 10_000
                await asyncio.sleep(0)
        finally:
            ended.set()

    dropped: list[str] = []
    answer = Events(endless()) if events else Json("y" * 10_000_000)
    listener = http.bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        limits = Gateway(send_s=0.3)
        async with http.serving(answer, listener, limits, dropped.append):
            client.connect(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            async with asyncio.timeout(PATIENCE_S):
                while not dropped or (events and not ended.is_set()):
                    await asyncio.sleep(0.01)
    assert dropped == ["slow_reader"]


@pytest.mark.parametrize("reads", [False, True])
async def test_who_is_too_slow_for_the_end_leaves_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reads: bool
) -> None:
    """A traceback was logged for each client that did not send its body, or read its answer."""
    monkeypatch.setattr(http, "GRACE_S", 0.1)
    working = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        working.set()
        if reads:
            while (await receive())["more_body"]:
                pass
        await Events(endless())(scope, receive, send)

    async def endless() -> AsyncGenerator[object, None]:
        while True:
            yield "y" * 10_000
            await asyncio.sleep(0)

    listener = http.bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with http.serving(app, listener, Gateway()):
            client.connect(listener.getsockname())
            client.sendall(POST + b"content-length: 10\r\n\r\n[")
            await working.wait()
        await until(lambda: "ends unfinished" in caplog.text)
        client.settimeout(PATIENCE_S)
        assert client.recv(12) == (b"HTTP/1.1 503" if reads else b"HTTP/1.1 200")
    assert caplog.text.count("POST /v1/completions ends unfinished with the gateway") == 1
    assert not any(each.exc_info for each in caplog.records)


async def test_who_reads_slowly_but_steadily_has_all() -> None:
    size = 400_000
    listener = http.bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with http.serving(Json("y" * size), listener, Gateway(send_s=1.0)):
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, b"GET / HTTP/1.0\r\n\r\n")
            came = 0
            while part := await loop.sock_recv(client, size // 40):
                came += len(part)
                await asyncio.sleep(0.03)
    assert came > size


async def test_there_are_no_more_connections_than_descriptors() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert http.affordable(Gateway()).max_connections == 512
        few = Gateway(max_connections=3)
        assert http.affordable(few) == few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_too_many_connections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S", PATIENCE_S)
    async with opened(folder, gateway=Gateway(max_connections=2)) as door:
        host, port = door.url.removeprefix("http://").split(":")
        first = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        answer = await said(door.url)
        assert b"503 Service Unavailable" in answer
        assert b"there are 2 connections already" in answer
        for _, writer in first:
            writer.close()
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get("/health")).status_code != 200:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\n"], ids=["nothing", "a part"])
async def test_who_asks_for_nothing_makes_room(
    folder: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle connections kept everybody else out for a minute."""
    monkeypatch.setattr(connection, "IDLE_S", 0.0)
    async with opened(folder, gateway=Gateway(max_connections=2)) as door:
        host, port = door.url.removeprefix("http://").split(":")
        door.play.gates["decode"] = slow = asyncio.Event()
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
            asking = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
            async with asyncio.timeout(PATIENCE_S):
                while not door.play.submitted:
                    await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            for _ in range(3):
                asked = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                assert b"200 OK" in await said(door.url, asked)
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
            writer.close()
            slow.set()
            assert (await asking).status_code == 200


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    made = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    return {"tls_certificate": str(certificate), "tls_key": str(key)}


async def test_tls(folder: Path, authority: trustme.CA, tls: dict[str, str]) -> None:
    http.require_certificate(Gateway(**tls))  # type: ignore[arg-type]
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with opened(folder, gateway=Gateway(**tls)) as door:  # type: ignore[arg-type]
        assert door.url.startswith("https://")
        async with httpx.AsyncClient(base_url=door.url, verify=trusting, timeout=60) as client:
            answer = await client.post("/v1/completions", json={"prompt": "x"})
            assert answer.json()["choices"][0]["text"] == "Hello, world."
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await client.get("/health")
        async with httpx.AsyncClient(timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(door.url.replace("https", "http") + "/health")


def test_certificates_that_cannot_be_used(tls: dict[str, str], tmp_path: Path) -> None:
    def check(**changes: str) -> None:
        http.require_certificate(Gateway(**tls | changes))  # type: ignore[arg-type]

    with pytest.raises(Invalid, match="there is no"):
        check(tls_certificate=str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match="there is no"):
        check(tls_key=str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match="is no certificate"):
        check(tls_certificate=tls["tls_key"])
    Path(tls["tls_key"]).chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600"):
        check()
    with pytest.raises(ValueError, match="both"):
        Gateway(tls_key="key.pem")


@pytest.mark.parametrize(
    "sent", [b"garbage\r\n\r\n", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"]
)
async def test_a_client_that_has_left_is_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """No clock goes on for it, such as the one for clients that do not read."""
    monkeypatch.setattr(connection, "LINGER_S", 1.0)
    async with opened(folder, gateway=Gateway(send_s=3600.0)) as door:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)  # a close resets the connection
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

        def is_forgotten() -> bool:
            gc.collect()
            return not any(type(each) is door.front._kind for each in gc.get_objects())

        await until(is_forgotten)
