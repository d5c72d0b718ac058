"""Logging of a service process: one line per record on stderr, with time, level and service."""

import logging
import sys

from sps2.common.errors import Invalid

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(service)s %(name)s: %(message)s"


def setup(service: str, level: str = "INFO") -> None:
    """Send all records from `level` up, and Python's warnings, to stderr; call it once at start.

    Raises:
        Invalid: `level` is not the name of a level.
    """
    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise Invalid(f"no log level {level!r}; there are {', '.join(known)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(FORMAT, datefmt="%Y-%m-%d %H:%M:%S", defaults={"service": service})
    )
    logging.basicConfig(level=known[level.upper()], handlers=[handler], force=True)
    logging.captureWarnings(True)
