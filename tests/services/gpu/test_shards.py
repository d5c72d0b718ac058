"""Shards that compute on a device of their own answer what shards on the host do.

Kernels run under Triton's interpreter, on the tensors of that device alone.
"""

import pytest
import torch

from sps2.common.device import HOST
from sps2.common.messages import Sampling, Scheme, Selection
from sps2.common.spans import Span

from ...replays import again
from ...twin import Twin, TwinDevice, kernels_there
from ..world import greedy, tiny_model, world


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_there(monkeypatch)


def prompt(tokens: int) -> list[int]:
    return torch.randint(97, (tokens,), generator=torch.Generator().manual_seed(3)).tolist()


def test_the_host_is_another_place() -> None:
    there = torch.arange(6, device=TwinDevice.place).view(2, 3)
    assert isinstance(there, Twin)
    assert there.device == TwinDevice.place
    assert there.T.tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(RuntimeError, match="of a twin"):
        there + torch.ones(3)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("ring"),
        Scheme("gather", kv_transfer_dtype="int8"),
        Scheme("pass_q"),
        Scheme("ulysses", 2),
        Scheme("star"),
        Scheme("strided", selection=Selection((), (), budget=0.5)),
        Scheme(
            "csa", kv_transfer_dtype="int8", selection=Selection((0.0,) * 3, (0.4,) * 3, rounds=2)
        ),
        Scheme("csa", 1, "int8", Selection((0.0,) * 3, (), (0.05, 0.3))),
    ],
    ids=lambda scheme: f"{scheme.method}-{scheme.kv_transfer_dtype}",
)
async def test_prompts_are_answered_as_on_the_host(scheme: Scheme) -> None:
    ids = prompt(132 if scheme.selection else 40)  # CSA moves blocks of 64
    answers = []
    for device in (HOST, TwinDevice()):
        async with world(tiny_model(window=40, device=device), 2, 2, device=device) as shards:
            replies, tokens = await shards.run("r", ids, greedy(3), scheme=scheme)
            answers.append([token.id for token in tokens])
            assert any(reply.prefilled.exchanged.sent_bytes for reply in replies)
    assert answers[0] == answers[1]


async def test_tokens_are_drawn_there() -> None:
    """By temperature and truncation, without bringing the logits to the host."""
    answers = []
    options = Sampling(max_tokens=4, seed=5, temperature=0.8, top_k=40, top_p=0.9)
    for device in (HOST, TwinDevice()):
        async with world(tiny_model(device=device), 1, 1, device=device) as shards:
            _, tokens = await shards.run("r", prompt(20), options)
            answers.append([token.id for token in tokens])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 4


async def test_prefixes_lie_there_and_all_sampling_works() -> None:
    """Over sockets, with pages of 8 bits, recorded steps, log-probabilities, and real draws."""
    ids = prompt(40)
    options = {"temperature": 0.7, "logprobs": 2, "prompt_logprobs": 1, "presence_penalty": 0.5}
    shared = ((0, Span(0, 20)), (1, Span(20, 40)))
    answers = []
    for device in (HOST, TwinDevice()):
        model = tiny_model(device=device)
        if device is not HOST:
            model.record(again)
        async with world(model, 2, 2, "tcp", kv=torch.int8, device=device) as shards:
            await shards.run("a", ids, greedy(2), keep=True)
            replies, tokens = await shards.run(
                "b", [*ids, 5, 6, 7], Sampling(max_tokens=3, seed=3, **options), shared=shared
            )
            answers.append([token.id for token in tokens])
            assert len([each for reply in replies for each in reply.prefilled.prompt_logprobs]) == 2
            assert all(token.logprobs for token in tokens)
    assert answers[0] == answers[1]
