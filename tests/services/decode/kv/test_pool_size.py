"""How large a shard's pool is, and that the configuration's reference says so."""

from types import SimpleNamespace

import msgspec
import pytest
import torch

from sps2.common.config import Cluster, Kv
from sps2.services.decode.kv import pool_size

from ...world import tiny_config


@pytest.mark.parametrize("configured", [0, 64])
def test_a_pool_is_as_large_as_the_reference_says(
    configured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    cluster = Cluster(model="m", kv=Kv(pool_tokens=configured, page_tokens=16))
    shard = SimpleNamespace(cluster=cluster, model=SimpleNamespace(config=config))
    monkeypatch.setattr(pool_size, "_free_bytes", lambda shard: 1 << 60)
    tokens = 16 * pool_size._pages(shard, torch.float32)  # type: ignore[arg-type]
    assert tokens == (configured or 16 * config.max_context)
    about = msgspec.json.schema(Kv)["$defs"]["Kv"]["properties"]["pool_tokens"]
    assert "no more than 16 times the model's context" in about["description"]
