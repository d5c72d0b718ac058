"""What `spsctl chat` prints of an answer, and where."""

import pytest

from sps2.cli.answer_output import Shown
from sps2.common.api import ChatChunk


def test_thoughts_are_on_stderr_apart_from_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    chunk = ChatChunk(id="x", created=1, model="m", system_fingerprint="f", choices=[])
    shown = Shown()
    for thought, text in (("Hm [b]. ", ""), ("So.", ""), ("", "Yes"), ("", ".")):
        shown.think([thought])
        shown.take(chunk, [text])
    shown.end()
    printed = capsys.readouterr()
    assert (printed.out, shown.text) == ("Yes.\n", "Yes.")
    assert printed.err == "Hm [b]. So.\n\n"
