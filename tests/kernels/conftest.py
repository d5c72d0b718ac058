"""Every test of a kernel runs on each kind of CPU that this one can stand in for."""

import pytest

from sps2.kernels import native


@pytest.fixture(params=range(native.level + 1), ids=native.LEVELS.__getitem__, autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(native, "level", request.param)
    return request.param
