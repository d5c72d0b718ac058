"""What a process says of its memory."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sps2.common.resident import Resident


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_is_the_last_known_where_no_file_can_be_opened() -> None:
    """Connections may take every descriptor; heartbeats ended their process then."""
    memory = Resident()
    before = memory.nbytes()
    assert before > 1 << 20
    with no_descriptor_left():
        with pytest.raises(OSError, match="Too many open files"):
            Path("/dev/null").read_bytes()
        assert memory.nbytes() == before
    assert memory.nbytes() > 1 << 20
