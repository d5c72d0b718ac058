"""A server to put load on."""

from collections.abc import Iterator

import pytest

from .foreign import Foreign, serving


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    with serving(Foreign(first_s=0.01, gap_s=0.002)) as server:
        yield server
