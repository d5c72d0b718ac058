"""Peers' processes, the pipe to one, and the HTTP of another, with small real ones."""

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest
from peers import lines
from peers.peer import PeerFailed, Reply
from peers.process import Process
from peers.runner import Runner
from peers.server import Server
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sps2.common.config import Gateway
from sps2.services.gateway.http.server import bind, serving

PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(lines.__file__).parent.parent)!r})
from peers.lines import serve

def generate(prompts, tokens):
    print("libraries print things")
    for _ in range(tokens):
        for prompt in prompts:
            if not prompt:
                sys.exit("an empty prompt")
        yield list(range(len(prompts)))

serve("1.2", generate)
"""
CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
"""


def process(folder: Path, code: str, piped: bool = True) -> Process:
    return Process([sys.executable, "-c", code], {}, folder / "log", piped)


async def test_a_runner_answers_several_prompts(tmp_path: Path) -> None:
    runner = Runner(process(tmp_path, PROGRAM), start_s=60)
    try:
        await runner.start()
        assert runner.version == "1.2"
        for prompts in ([[1, 2]], [[1], [2], [3]]):
            replies = [Reply() for _ in prompts]
            await runner.ask(prompts, 4, replies)
            assert [len(reply.stamps_s) for reply in replies] == [4] * len(prompts)
            assert all(reply.ttft_s > 0 for reply in replies)
    finally:
        await runner.stop()


async def test_a_runner_that_ends_shows_the_end_of_its_log(tmp_path: Path) -> None:
    runner = Runner(process(tmp_path, PROGRAM), start_s=60)
    try:
        await runner.start()
        with pytest.raises(PeerFailed, match=r"(?s)log:.*an empty prompt"):
            await runner.ask([[]], 1, [Reply()])
    finally:
        await runner.stop()


async def test_a_server_that_ends_at_its_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    ends = process(tmp_path, "import sys; sys.exit('no such model')", piped=False)
    server = Server(ends, "http://127.0.0.1:9", "/ready", {}, start_s=60)
    try:
        with pytest.raises(PeerFailed, match="no such model"):
            await server.start()
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("choices", "tokens"),
    [
        ([{"text": "a", "token_ids": [1, 2]}, {"text": "b", "token_ids": [3]}], 3),
        ([{"text": "a"}, {"text": "b"}], 2),
        ([{"text": "a"}, {"text": "b"}], 3),  # a token without a text of its own
    ],
)
async def test_tokens_of_a_stream_are_counted(
    tmp_path: Path, choices: list[dict[str, object]], tokens: int
) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": tokens}}
    events = [*({"choices": [choice]} for choice in choices), usage]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        version = scope["path"] == "/version"
        await Response('{"version": "1.2"}' if version else body)(scope, receive, send)

    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(process(tmp_path, CHILD, piped=False), url, "/ready", {}, start_s=60)
    async with serving(app, listener, Gateway()):
        try:
            await server.start()
            reply = Reply()
            await server.ask([[1, 2, 3]], tokens, [reply])
            assert (server.version, len(reply.stamps_s), reply.text) == ("1.2", tokens, "ab")
            with pytest.raises(PeerFailed, match=f"{tokens} tokens came of 9"):
                await server.ask([[1, 2, 3]], 9, [Reply()])
        finally:
            await server.stop()


async def test_stopping_ends_what_the_process_started(tmp_path: Path) -> None:
    parent = process(tmp_path, CHILD, piped=False)
    await parent.start()
    me = psutil.Process()
    async with asyncio.timeout(60):
        while len(started := me.children(recursive=True)) < 2:
            await asyncio.sleep(0.01)
    memory = parent.memory()
    assert 0 < memory.anonymous < memory.pss
    await parent.stop()
    assert not [each for each in started if each.is_running()]
