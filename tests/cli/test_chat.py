"""`spsctl chat` and `complete` in a terminal and in a pipe, against a gateway that is acted."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..terminal import Terminal, terminal
from .acted import acted

LONG = "The quick brown fox jumps over the lazy dog while nobody is looking at it. " * 2


def command(folder: Path, *arguments: str) -> list[str]:
    file = str(folder / "cluster.toml")
    return [sys.executable, "-m", "sps2.cli.main", *arguments, "--config", file]


def said(
    folder: Path, stdin: bytes | None, *arguments: str
) -> "subprocess.CompletedProcess[bytes]":
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    argv = command(folder, *arguments)
    return subprocess.run(argv, capture_output=True, timeout=120, **given)


def test_piped_text_goes_before_the_question(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("a file")
    with acted(tmp_path, "yes " * 40) as gateway:
        done = said(tmp_path, b"a document", "chat", "Summarise.", "-t", "0", "--top-p", "0.5")
        assert (done.returncode, done.stdout.decode()) == (0, "yes " * 40 + "\n"), done.stderr
        for stdin, arguments in (
            (b"one\ntwo\n", ["chat"]),
            (b"text", ["chat", "-f", "-", "What?"]),
            (b"text", ["chat", "-", "-f", str(file)]),
            (None, ["chat", "hi"]),
            (b"text", ["complete", "And"]),
        ):
            assert said(tmp_path, stdin, *arguments).returncode == 0
        assert said(tmp_path, b"", "chat").returncode == 2
        assert said(tmp_path, b"\xff\xfe", "chat", "x").returncode == 1
    assert [request.messages[-1].content for request in gateway.asked] == [
        "a document\n\nSummarise.",
        "one\ntwo\n",
        "text\n\nWhat?",
        "a file\n\ntext",
        "hi",
    ]
    assert (gateway.asked[0].temperature, gateway.asked[0].top_p) == (0, 0.5)
    assert (gateway.asked[1].temperature, gateway.asked[1].top_p) == (None, None)  # the model's
    assert gateway.completed[0].prompt == "text\n\nAnd"


def test_words_stay_whole_and_the_speed_is_told(tmp_path: Path) -> None:
    for width in (60, 80):
        with (
            acted(tmp_path, LONG),
            terminal(command(tmp_path, "chat", "hi"), width, 24) as screen,
        ):
            assert screen.wait() == 0
            rows = [row.rstrip() for row in screen.rows]
        text = next(place for place, row in enumerate(rows) if row.startswith("prompt"))
        assert " ".join(" ".join(rows[:text]).split()) == LONG.strip()
        assert all(row.split()[-1] in LONG.split() for row in rows[:text] if row)
        tail = " ".join(" ".join(rows[text:]).split())
        assert f"prompt 6,247 tokens; answer {len(LONG)} tokens at " in tail
        assert "tokens/s" in tail


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(str(len(LONG)), f"cut at {len(LONG)} tokens (-n)"), ("500", f"cut at {len(LONG)} tokens")],
)
@pytest.mark.parametrize("command_", ["chat", "complete"])
def test_an_answer_that_was_cut_says_so(
    tmp_path: Path, command_: str, tokens: str, said: str
) -> None:
    """At -n, or before that, where the context is full."""
    argv = command(tmp_path, command_, "hi", "-n", tokens)
    with acted(tmp_path, LONG) as gateway:
        gateway.finish = "length"
        with terminal(argv, 200, 24) as screen:
            assert screen.wait() == 0
            rows = [row.rstrip() for row in screen.rows]
    assert any(row.endswith(f"; {said}") for row in rows)


def test_help_says_what_a_pipe_gets(tmp_path: Path) -> None:
    for name in ("chat", "complete"):
        told = " ".join(said(tmp_path, None, name, "--help").stdout.decode().split())
        assert "Where stderr is a terminal, it shows how much of the prompt" in told


def test_a_conversation(tmp_path: Path) -> None:
    def prompts(screen: Terminal, count: int) -> list[str]:
        def shown(rows: list[str]) -> bool:
            return sum(row.startswith(">") for row in rows) == count

        return screen.until(shown, f"{count} prompts")

    with (
        acted(tmp_path, "Hello!") as gateway,
        terminal(command(tmp_path, "chat"), 100, 40) as screen,
    ):
        prompts(screen, 1)
        screen.press("one\n")
        screen.until(lambda rows: any(row.startswith("Hello") for row in rows), "the answer")
        screen.process.send_signal(signal.SIGINT)
        assert any("Hello [stopped]" in row for row in prompts(screen, 2))
        screen.press('"""two\nand\n')
        screen.press('three"""\n')
        screen.until(lambda rows: sum("Hello" in row for row in rows) == 2, "the second answer")
        screen.process.send_signal(signal.SIGINT)
        prompts(screen, 3)
        screen.press("four \\\nfive\n")
        screen.until(lambda rows: sum("Hello" in row for row in rows) == 3, "the third answer")
        screen.process.send_signal(signal.SIGINT)
        prompts(screen, 4)

        screen.process.send_signal(signal.SIGINT)
        rows = prompts(screen, 5)
        assert any("Ctrl-C again, Ctrl-D or /exit" in row for row in rows)
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 0
    assert [each.content for each in gateway.asked[-1].messages] == [
        *("one", "Hello", "two\nand\nthree", "Hello", "four \nfive"),
    ]


def test_an_answer_that_is_stopped_is_no_success(tmp_path: Path) -> None:
    with acted(tmp_path, "Hello!"), terminal(command(tmp_path, "chat", "hi"), 80, 24) as screen:
        screen.until(lambda rows: "Hello" in rows[0], "the answer")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert "Hello [stopped]" in screen.rows[0]
