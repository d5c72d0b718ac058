"""A cluster that packs bfloat16 losslessly answers as one that does not, and sends fewer bytes."""

from collections.abc import Iterator

import pytest

from sps2.common.api.usage import Sps2Usage
from sps2.common.client import Client
from sps2.kernels import native

from .conftest import Launch, Running
from .test_cluster import prompt_of, said

pytestmark = pytest.mark.skipif(not native.built, reason="without C++ nothing is packed")


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    """In bfloat16, on links that are said to be so slow that every coder is faster."""
    sharing = {"gflops": 1.0, "link_latency_s": 0.0, "link_gbit": 0.001}
    kv = {"prefix_cache": False}
    with launch("long", "tcp", dtype="bfloat16", sharing=sharing, kv=kv) as running:
        yield running


@pytest.mark.parametrize("method", ["gather", "ring", "pass_q"])
def test_answers_and_what_was_sent(cluster: Running, method: str) -> None:
    found: dict[bool | None, tuple[list[str], Sps2Usage]] = {}
    with Client(cluster.bus) as client:
        for lossless in (False, True, None):
            wanted = {"method": method, "sp_degree": 2, "pipelined": False, "lossless": lossless}
            answer = client.complete(
                prompt_of(1500),
                max_tokens=16,
                temperature=0,
                ignore_eos=True,
                logprobs=0,
                sps2=wanted,  # type: ignore[arg-type]
            )
            assert answer.usage.sps2 is not None
            found[lossless] = said(answer), answer.usage.sps2
    plain, packed, by_rate = found.values()
    for text, usage in (packed, by_rate):
        assert usage.saved_bytes
        if method != "gather":  # its spans follow the predicted bytes, and the shards' speeds
            assert text == plain[0]
            assert usage.prefill_bytes + usage.saved_bytes == plain[1].prefill_bytes
        assert usage.prefill_bytes < 0.8 * plain[1].prefill_bytes
        assert usage.deposit_bytes < 0.8 * plain[1].deposit_bytes
    assert plain[1].saved_bytes == 0
