"""Embeddings of a cluster equal the hidden states of transformers, at every SP degree."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from .conftest import Launch, Running
from .test_cluster import _reference as reference
from .test_cluster import prompt_of

SCHEDULER = {"prefill_span_tokens": 16, "decode_span_tokens": 64}


@pytest.fixture(scope="module", params=[0, 64], ids=["whole", "chunks"])
def cluster(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    scheduler = SCHEDULER | {"chunk_tokens": request.param}
    with launch("smollm2", "tcp", kv={"page_tokens": 4}, scheduler=scheduler) as running:
        yield running


def embedded(cluster: Running, prompts: list[list[int]], **own: object) -> dict[str, Any]:
    body = {"input": prompts, "sps2": own}
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def expected(cluster: Running, prompt: list[int], pooling: str) -> torch.Tensor:
    model = reference(cluster.folder)
    with torch.inference_mode():
        hidden = model.model(torch.tensor([prompt])).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden[-1] if pooling == "last" else hidden.mean(0), dim=0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("degree", [1, 2])
def test_vectors_equal_transformers(cluster: Running, degree: int, pooling: str) -> None:
    prompts = [prompt_of(length) for length in (1, 40, 150)]
    # the second time there is a cache, of which the last token alone may make use
    for _ in range(2):
        found = embedded(cluster, prompts, pooling=pooling, sp_degree=degree)
        for prompt, one in zip(prompts, found["data"], strict=True):
            vector = torch.tensor(one["embedding"])
            torch.testing.assert_close(
                vector, expected(cluster, prompt, pooling), rtol=0, atol=1e-4
            )
    cached = found["usage"]["sps2"]["cached_tokens"]
    assert cached == 0 if pooling == "mean" else cached > 0


def test_a_completion_goes_on_where_an_embedding_left_pages(cluster: Running) -> None:
    prompt = prompt_of(97)
    embedded(cluster, [prompt], pooling="mean")
    answer = httpx.post(
        f"{cluster.url}/v1/completions", json={"prompt": prompt, "max_tokens": 2}, timeout=120
    )
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
