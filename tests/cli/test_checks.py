"""What `spsctl doctor` finds on machines that lack something."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sps2.cli import checks
from sps2.cli.doctor_findings import Finding
from sps2.cli.effective import effective
from sps2.common import machine
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring
from sps2.common.transport import BackendName
from sps2.kernels import native


def found(check: str, cluster: Cluster | None = None) -> Finding:
    """What one check finds; the loop-back check, which others need not wait for, takes seconds."""
    look = getattr(checks, f"_{check}")
    made: Finding = look(cluster or Cluster()) if signature(look).parameters else look()
    assert made.check == check
    return made


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_context": 999}, "max_context 999 is over the model's 512"),
        ({"tp": 3}, "tp 3 cannot split 4 heads"),
        ({"decode_tp": 4}, "tp 4 cannot split 2 KV heads"),
        ({"tp": 2, "quantize": "int4"}, "--quantize int4 needs multiples"),
    ],
)
def test_a_model_that_up_would_refuse(
    flags: dict[str, Any], said: str, checkpoint: Callable[[str], Path]
) -> None:
    folder = str(checkpoint("llama3"))
    finding = found("model", Cluster(model=folder, **flags))
    assert finding.verdict == "broken"
    assert said in finding.detail
    assert found("model", Cluster(model=folder, max_context=512, tp=2)).verdict == "ok"
    with pytest.raises(Invalid) as refused:
        effective(None, model=folder, **flags)
    assert str(refused.value) == finding.detail


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sps2.kernels.gpu.missing", lambda: "no CUDA device")
    assert found("gpu", Cluster(device="cuda")).verdict == "broken"
    assert found("gpu", Cluster(device="auto")).verdict == "ok"


def test_which_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for level, name in enumerate(native.LEVELS[1:], 1):
        monkeypatch.setattr(native, "level", level)
        assert found("kernels") == Finding("kernels", "ok", f"C++ with {name}")


def test_why_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", 0)
    monkeypatch.setattr(native, "built", False)
    monkeypatch.setattr(native, "unbuilt", lambda: "attention.cpp:1:2: error: #error x")
    finding = found("kernels")
    assert finding.verdict == "warning"
    assert "not built (attention.cpp:1:2: error: #error x); torch does" in finding.detail


def test_kernels_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", 0)
    monkeypatch.setattr(native, "built", False)
    monkeypatch.setattr(native, "unfit", "_attention.so was built from other sources than these")
    finding = found("kernels")
    assert finding.verdict == "warning"
    assert finding.detail.startswith("_attention.so was built from other sources")
    assert "make setup" in finding.detail


@pytest.mark.parametrize(
    ("flags", "verdict", "said"),
    [
        ({"avx2"}, "warning", "CXX=g++"),
        ({"asimd"}, "warning", "CXX=g++"),
        ({"vx"}, "ok", "for x86-64 with AVX2 and 64-bit ARM"),
    ],
)
def test_kernels_of_no_use_here(
    flags: set[str], verdict: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", 0)
    monkeypatch.setattr(native, "built", True)
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    finding = found("kernels")
    assert (finding.verdict, said in finding.detail) == (verdict, True)


@pytest.mark.parametrize(
    ("host", "transport", "encryption", "verdict", "said"),
    [
        ("127.0.0.1", "tcp", "auto", "ok", "in the clear, since it is on loopback"),
        ("10.0.0.1", "tcp", "auto", "ok", "encrypted by TLS 1.3"),
        ("10.0.0.1", "ucx", "auto", "warning", "UCX sends tensors in the clear"),
        ("10.0.0.1", "auto", "on", "ok", "encrypted by TLS 1.3"),
        ("10.0.0.1", "tcp", "off", "warning", "in the clear, as configured"),
    ],
)
def test_whether_links_are_encrypted(
    host: str, transport: str, encryption: str, verdict: str, said: str, tmp_path: Path
) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("here")
    tables = {"host": host, "transport": transport, "encryption": encryption}
    cluster = msgspec.convert(tables | {"bus": {"keys": str(ring.folder)}}, Cluster)
    backend: BackendName = "ucx" if transport == "ucx" else "tcp"
    found = checks._links(cluster, backend)
    assert (found.check, found.verdict) == ("links", verdict)
    assert said in found.detail


def test_encryption_without_keys_is_told() -> None:
    found = checks._links(Cluster(encryption="on"), "tcp")
    assert found.verdict == "broken"
    assert "spsctl keys init" in found.detail
