"""The examples say what the cluster answers, started as a user does."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sps2.common.api.usage import Sps2Usage, Usage
from sps2.common.client import Client
from sps2.common.messages import ClusterStatus

from .conftest import Launch, Running

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("long", "tcp") as running:
        yield running


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def chat(cluster: Running, question: str) -> str:
    with Client(cluster.bus) as client:
        answer = client.chat([{"role": "user", "content": question}], max_tokens=16, temperature=0)
    content = answer.choices[0].message.content
    assert content
    return content


def story(cluster: Running) -> str:
    with Client(cluster.bus) as client:
        answer = client.complete("Once upon a time", max_tokens=16, temperature=0)
    assert answer.choices[0].text
    return answer.choices[0].text


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl(cluster: Running) -> None:
    output = said("bash", str(EXAMPLES / "curl.sh"), cluster.url)
    models, completion, stream = re.split("^# .*$", output, flags=re.M)[1:]
    assert json.loads(models)["data"][0]["object"] == "model"
    assert json.loads(completion)["choices"][0]["text"] == story(cluster)
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line[:5] == "data:"]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    text = "".join(c["delta"].get("content") or "" for each in chunks for c in each["choices"])
    assert text == chat(cluster, "Name three rivers.")
    assert chunks[-1]["usage"]["sps2"]["sp_degree"] == 2


def test_openai_client(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "openai_client.py"), cluster.url)
    answer = chat(cluster, "Name three rivers.")
    assert output == f"{answer}\nSP degree of prefill: 2\n{answer}\n"


def test_ollama_client(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "ollama_client.py"), cluster.url)
    answer, counts, streamed, _ = output.rsplit("\n", 3)
    assert answer == streamed == chat(cluster, "Name three rivers.")
    assert counts.endswith(" and 16")


def test_anthropic_client(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "anthropic_client.py"), cluster.url)
    answer, counts, streamed, _ = output.rsplit("\n", 3)
    assert answer == streamed == chat(cluster, "Name three rivers.")
    assert counts.endswith(" and 16")


def test_responses(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "responses.py"), cluster.url)
    assert output.startswith(f"{chat(cluster, 'Name three rivers.')}\n")
    assert output.endswith("\nanswered items: 3\n")


def test_batch(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "batch.py"), cluster.url)
    assert output.startswith("completed BatchRequestCounts(completed=2, failed=0, total=2)\n")
    assert f"rivers: {chat(cluster, 'Name three rivers.')}\n" in output
    assert f"colours: {chat(cluster, 'Name three colours.')}\n" in output


def test_the_demo_says_that_its_answer_was_cut() -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    numbers = dict.fromkeys(Sps2Usage.__struct_fields__, 1)
    spent = Sps2Usage(**numbers | {"placements": (), "owner": "decode-0"})
    usage = Usage(8000, 96, 8096, sps2=spent)
    for is_cut, said in ((True, "96 tokens, cut at its limit of 96"), (False, "96 tokens")):
        cluster = ClusterStatus("m", "", True, "", (), (), (), (), 0)
        table = demo["report"](usage, [1.0, 1.1], is_cut, cluster)
        assert said in list(table.columns[1].cells)


def test_sdk(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "sdk.py"), cluster.bus)
    assert output.startswith(f"{story(cluster)}\ndecode-")
    assert output.endswith(f"\n{chat(cluster, 'Name three rivers.')}\nleft after 5 chunks\n")


def test_sdk_async(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "sdk_async.py"), cluster.bus)
    asked = [f"Name three {what}." for what in ("rivers", "lakes", "seas")]
    answers = "".join(f"{question} {chat(cluster, question)}\n" for question in asked)
    assert output == f"{answers}given up\n"


def test_tools(cluster: Running) -> None:
    output = said(sys.executable, str(EXAMPLES / "tools.py"), cluster.url)
    call = r'weather\(\{\s*"city"\s*:\s*".*"\s*\}\)\n.'
    assert re.match(call, output, re.DOTALL), output
