"""A cluster around a GGUF file answers as transformers does with the numbers of its blocks."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from sps2.cli import ports
from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.models.pull import pull

from ..common.conftest import write_gguf  # noqa: F401
from .conftest import Running
from .test_cluster import answered_as_transformers

KIND = gguf.GGMLQuantizationType.Q4_0


def rounded(source: Path, target: Path) -> Path:
    """The checkpoint with the numbers that a GGUF file has: matrices in Q4_0, norms in bfloat16."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    numbers = {}
    for name, values in load_file(source / "model.safetensors").items():
        if values.dim() == 2:
            blocks = gguf.quantize(values.numpy(), KIND)
            numbers[name] = torch.from_numpy(gguf.dequantize(blocks, KIND))
        else:
            numbers[name] = values.bfloat16().float()
    save_file(numbers, target / "model.safetensors", {"format": "pt"})
    return target


def test_answers_are_those_of_the_file(
    checkpoint: Callable[[str], Path],
    write_gguf: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))
    source = write_gguf(
        checkpoint("llama2"), tmp_path / "m.gguf", "llama", kind_of=lambda name: "Q4_0"
    )
    pull(str(source), lambda *_: None)
    port = ports.free_base()
    with running_cluster(
        name=f"gguf-{port}",
        port=port,
        model=str(source),
        transport="tcp",
        mixed=2,
        dtype="float32",
        threads=1,
        scheduler={"prefill_span_tokens": 16, "decode_span_tokens": 64},
        sharing={"gflops": 1.0, "link_latency_s": 0.0},
    ):
        cluster = config.load(port=port)
        dense = rounded(checkpoint("llama2"), tmp_path / "dense")
        running = Running(dense, cluster.gateway_address, cluster.http_url)
        for length in (1, 17, 150):
            answered_as_transformers(running, length, 16)
