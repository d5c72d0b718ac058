"""Log lines of a service: what they carry, and that warnings become lines."""

import json
import re
import subprocess
import sys

import pytest

from sps2.common import log
from sps2.common.errors import Invalid

PROGRAM = """
import logging, warnings
from sps2.common import log
log.setup("decode-0 100%", "info")
log.setup("decode-0 100%", "info")
logging.getLogger("sps2.x").info("hello %s", "you")
logging.getLogger("sps2.x").debug("unseen")
warnings.warn("old habit")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("sps2.x").exception("failed")
"""


def test_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"{time} INFO    decode-0 100% sps2\.x: hello you", lines[0])
    assert re.match(rf"{time} WARNING decode-0 100% py\.warnings: .*old habit", lines[1])
    assert re.fullmatch(rf"{time} ERROR   decode-0 100% sps2\.x: failed", lines[3])
    assert lines[-1].startswith("ZeroDivisionError")
    assert "unseen" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_level_is_invalid() -> None:
    with pytest.raises(Invalid, match="no log level 'LOUD'; there are"):
        log.setup("x", "LOUD")


JSON = """
import logging
from sps2.common import log
log.setup("gateway", "warning", "json")
logging.getLogger("sps2.x").info("unseen")
logging.getLogger("sps2.x").warning("two\\nlines", extra={"fields": {"code": 400}})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("sps2.x").exception("failed")
"""


def test_lines_as_json() -> None:
    done = subprocess.run([sys.executable, "-c", JSON], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.pop("time"))
    assert first == {
        "level": "warning",
        "service": "gateway",
        "logger": "sps2.x",
        "message": "two\nlines",
        "code": 400,
    }
    assert "ZeroDivisionError" in second["exception"]
