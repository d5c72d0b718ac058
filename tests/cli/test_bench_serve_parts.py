"""The parts of `spsctl bench serve`: metrics, its HTTP client, and its prompts."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.cli.bench.serve import metrics
from sps2.cli.bench.serve.datasets import BY_NAME
from sps2.cli.bench.serve.http import Http, events
from sps2.cli.bench.serve.prompts import Prompts
from sps2.cli.bench.serve.reply import Reply
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Turn
from sps2.common.errors import Invalid

from .bench_serving import run


def test_metrics_by_hand() -> None:
    def reply(sent_s: float, *stamps_s: float, tokens: int) -> Reply:
        made = Reply(0.0, 10, sent_s=sent_s, stamps_s=list(stamps_s), told_tokens=tokens)
        made.state = "done"
        return made

    replies = [reply(0, 1, 2, 3, tokens=3), reply(1, 2, tokens=1), reply(4, 6, 8, tokens=5)]
    found = metrics.computed(replies, 10.0, [50, 90], {"ttft": 1500, "tpot": 600})
    assert found.summaries["ttft"].mean == pytest.approx(1000 * 4 / 3)
    assert found.summaries["ttft"].percentiles == pytest.approx({50: 1000, 90: 1800})
    assert found.summaries["tpot"].mean == pytest.approx(750)  # 1000 and 500; one token has none
    assert found.summaries["itl"].median == 1000
    assert found.summaries["e2el"].std == pytest.approx(statistics.pstdev([3000, 1000, 4000]))
    assert found.good == 1  # the second: the first is too slow per token, the third at the start
    assert found.output_tokens == 9
    assert found.peak_requests == 2
    assert found.peak_output_tokens == 2
    assert metrics.computed([], 0.0, [99], {}).request_throughput == 0


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50), st.integers(1, 99))
def test_percentiles_are_linear(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1]
    assert metrics.percentile(ordered, percent) == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n"]),
)
async def test_events_in_any_pieces(texts: list[str], size: int, newline: str) -> None:
    stream = "".join(f": ping{newline}id: 5{newline}data: {t}{newline}{newline}" for t in texts)
    data = stream.encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    assert [each.decode() async for each in events(pieces())] == texts


async def test_an_answer_that_is_no_http() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    result = await asyncio.to_thread(run, None, "--port", port)
    server.close()
    assert "no HTTP answer" in result.output
    with pytest.raises(Invalid):
        Http("ftp://somewhere", {})


def test_blocks_become_equal_text() -> None:
    prompts = Prompts(seed=3)
    one, two = Turn(0, 1200, 1, (5, 6, 7)), Turn(0, 1500, 1, (5, 6, 8))
    a, b = prompts.tokens(one, 512, 0), prompts.tokens(two, 512, 1)
    assert (len(a), len(b)) == (1200, 1500)
    assert a[:1024] == b[:1024]
    assert a[1024:1028] != b[1024:1028]
    words = prompts.text(one, 512, 0).split(" ")
    assert len(words) == 1200
    assert words[:1024] == prompts.text(two, 512, 1).split(" ")[:1024]
    known = Prompts(seed=3, known=lambda word: len(word) == 4)
    assert {len(word) for word in known.text(one, 512, 0).split(" ")} == {3}


def test_the_page_lists_every_dataset_and_figure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench-serve.md").read_text()
    for name in (*sources.names(), *BY_NAME, *metrics.METRICS):
        assert f"`{name}`" in page
