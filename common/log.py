"""Logging of a process: one line per record on stderr, with time, level and service."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from sps2.common.errors import Invalid

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(service)s %(name)s: %(message)s"


class _Json(logging.Formatter):
    """One JSON object per record: `time`, `level`, `service`, `logger`, `message`, `exception` if
    there is one, and the fields that a record has as `extra={"fields": {..}}`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def setup(service: str, level: str = "INFO", form: Literal["text", "json"] = "text") -> None:
    """Send all records from `level` up, and Python's warnings, to stderr. The last call counts.

    Raises:
        Invalid: `level` is not the name of a level.
    """
    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise Invalid(f"no log level {level!r}; there are {', '.join(known)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json(service)
        if form == "json"
        else logging.Formatter(FORMAT, datefmt="%Y-%m-%d %H:%M:%S", defaults={"service": service})
    )
    logging.basicConfig(level=known[level.upper()], handlers=[handler], force=True)
    logging.captureWarnings(True)
