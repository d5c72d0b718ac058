"""The model computes what transformers computes, for every family."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.weights import load
from sps2.common.text.tokens import Tokenizer
from sps2.kernels import native

Result = TypeVar("Result")
Checkpoint = Callable[[str], Path]
SOURCE = Path(__file__).read_text()

FAMILIES = [
    "llama2",
    "llama3",
    "llama-linear",
    "smollm2",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "yarn",
]


def prompt(tokens: int, vocab: int = 384) -> Tensor:
    return torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(7))


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


async def logits(model: Llama, ids: Tensor) -> Tensor:
    positions = torch.arange(len(ids))
    hidden = await model.forward(ids, positions, LocalAttention(model.config, positions))
    return model.logits(hidden)


async def greedy(model: Llama, ids: list[int], count: int) -> list[int]:
    """Prefill, then one token at a time over the same keys and values."""
    attend = LocalAttention(model.config, torch.arange(len(ids)))
    hidden = await model.forward(torch.tensor(ids), attend.positions, attend)
    found: list[int] = []
    while True:
        found.append(int(model.logits(hidden[-1:]).argmax()))
        if len(found) == count:
            return found
        attend.positions = torch.tensor([len(ids) + len(found) - 1])
        hidden = await model.forward(torch.tensor(found[-1:]), attend.positions, attend)


@pytest.mark.parametrize("family", FAMILIES)
async def test_equals_transformers(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    model, oracle = load(folder), reference(folder)
    ids = prompt(150)
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
        generated = oracle.generate(
            ids[None, :40], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, 40:]
    assert expected.std() > 0.1
    torch.testing.assert_close(await logits(model, ids), expected, atol=1e-4, rtol=1e-4)
    assert await greedy(model, ids[:40].tolist(), 24) == generated.tolist()


@pytest.mark.parametrize("family", ["llama3", "mistral"])
async def test_tokens_may_come_in_any_order(family: str, checkpoint: Checkpoint) -> None:
    """Two passes, each with scattered positions; the second sees the keys of both."""
    model = load(checkpoint(family))
    ids = prompt(60)
    expected = await logits(model, ids)

    first, second = torch.arange(29, -1, -1), torch.arange(30, 60).roll(11)
    attend = LocalAttention(model.config, first)
    early = model.logits(await model.forward(ids[first], first, attend))
    attend.positions = second
    late = model.logits(await model.forward(ids[second], second, attend))

    torch.testing.assert_close(early, expected[first], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(late, expected[second], atol=1e-4, rtol=1e-4)


async def test_no_tokens_at_all(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("qwen3"))
    assert (await logits(model, prompt(0))).shape == (0, 384)


@pytest.mark.parametrize("asked", [(), (39,), (3, 17)])
@pytest.mark.parametrize("tokens", [40, 8])
async def test_only_the_rows_asked_for(
    checkpoint: Checkpoint, tokens: int, asked: tuple[int, ...]
) -> None:
    model = load(checkpoint("llama2"))
    ids, positions = prompt(tokens), torch.arange(tokens)
    rows = torch.tensor(asked, dtype=torch.int64) % tokens
    attend = LocalAttention(model.config, positions)
    whole = await model.forward(ids, positions, attend)
    attend = LocalAttention(model.config, positions)
    few = await model.forward(ids, positions, attend, selected=rows)
    torch.testing.assert_close(few, whole[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("asked", [None, (), (39,), (3, 17)])
async def test_blocks_of_rows_are_as_the_whole(
    checkpoint: Checkpoint, asked: tuple[int, ...] | None
) -> None:
    model, positions = load(checkpoint("qwen3")), torch.arange(40)
    rows = None if asked is None else torch.tensor(asked, dtype=torch.int64)
    found = []
    for most in (1000, 16):
        model.most_rows = most
        attend = LocalAttention(model.config, positions)
        found.append(await model.forward(prompt(40), positions, attend, selected=rows))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


async def test_attend_gets_contiguous_heads_and_run_gets_few_pieces(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("qwen3"))
    positions = torch.arange(5)
    local = LocalAttention(model.config, positions)
    pieces = 0

    async def run(work: Callable[[], Result]) -> Result:
        nonlocal pieces
        pieces += 1
        return work()

    async def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape == (5, 4, 32)
        assert k.shape == v.shape == (5, 2, 32)
        assert all(x.is_contiguous() for x in (q, k, v))
        return await local(layer, q, k, v)

    hidden = await model.forward(prompt(5), positions, attend, run)
    assert hidden.shape == (5, model.config.hidden_size)
    assert not hidden.requires_grad
    assert pieces == model.config.layers + 1


async def test_bfloat16_is_as_close_as_transformers(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama2")
    ids = prompt(100)
    exact = (await logits(load(folder), ids)).log_softmax(-1)

    def divergence(scores: Tensor) -> float:
        return float((exact.exp() * (exact - scores.log_softmax(-1))).sum(-1).mean())

    with torch.no_grad():
        theirs = divergence(reference(folder, torch.bfloat16)(ids[None]).logits[0].float())
    assert divergence(await logits(load(folder, "bfloat16"), ids)) < 1.1 * theirs


@pytest.mark.model
async def test_real_model_equals_transformers(smollm2: Path) -> None:
    ids = torch.tensor(Tokenizer(smollm2).encode(SOURCE)[:500])
    with torch.no_grad():
        expected = reference(smollm2)(ids[None]).logits[0]
    found = await logits(load(smollm2, "float32"), ids)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.model
async def test_real_model_answers(smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    ids = tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = tokenizer.decode(await greedy(load(smollm2, "float32"), ids, 12))
    assert "Paris" in answer


QUESTIONS = [
    *("What is the capital of France?", "What is the capital of Italy?", "What is 2 + 2?"),
    *("Who wrote Hamlet?", "What color is the sky?", "How many legs does a spider have?"),
    *("What is the largest planet?", "Name a fruit.", "What is the opposite of hot?"),
    *("How do you say hello in Spanish?", "What is water made of?", "Who was Albert Einstein?"),
    *("What is the speed of light?", "Where do penguins live?", "What is a noun?"),
    *("When did World War II end?", "Why is the sky blue?", "What do bees make?"),
    *("How many days are in a week?", "What is the boiling point of water?"),
]


@pytest.mark.model
async def test_real_model_in_bfloat16_begins_answers_as_in_float32(smollm2: Path) -> None:
    """All of them: in bfloat16 transformers finds no more, and takes minutes where CPUs emulate it.

    So do torch's products here: two prompts go whole, as cold ones; the others a few tokens at a
    time, as behind a cached prefix and in decoding.
    """
    tokenizer, model, oracle = Tokenizer(smollm2), load(smollm2, "bfloat16"), reference(smollm2)
    for number, question in enumerate(QUESTIONS):
        ids = torch.tensor(tokenizer.chat([{"role": "user", "content": question}]))
        attend = LocalAttention(model.config, ids)
        for positions in torch.arange(len(ids)).split(len(ids) if number < 2 else 16):
            attend.positions = positions
            hidden = await model.forward(ids[positions], positions, attend)
        found = model.logits(hidden[-1:])[0]
        with torch.no_grad():
            exact = oracle(ids[None], logits_to_keep=1).logits[0, -1].log_softmax(-1)
        best, second = found.topk(2).values
        assert best > second, question
        assert int(found.argmax()) == int(exact.argmax()), question
        assert (exact.exp() * (exact - found.log_softmax(-1))).sum() < 2e-3, question


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama-linear"])
@pytest.mark.parametrize("level", range(1, native.level + 1), ids=native.LEVELS.__getitem__)
async def test_fused_layers_are_as_exact_as_separate_ones(
    checkpoint: Callable[[str], Path],
    family: str,
    rows: int,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoint(family)
    positions = torch.arange(rows)
    prompts = torch.randint(384, (24, rows), generator=torch.Generator().manual_seed(7))

    async def at(level: int, dtype: str) -> Tensor:
        monkeypatch.setattr(native, "level", level)
        model = load(folder, dtype)
        assert (model._native is None) == (level == 0)
        found = []
        for ids in prompts:
            attend = LocalAttention(model.config, positions)
            found.append(model.logits(await model.forward(ids, positions, attend)))
        return torch.cat(found)

    exact = await at(0, "float32")
    torch.testing.assert_close(await at(level, "float32"), exact, rtol=1e-4, atol=1e-4)
    separate, fused = [(await at(of, "bfloat16") - exact).abs().mean() for of in (0, level)]
    assert fused < 1.1 * separate


@pytest.mark.skipif(not native.level, reason="there are no C++ kernels")
def test_few_rows_on_two_threads_do_not_mix(checkpoint: Checkpoint) -> None:
    """Shards that do both prefill on one thread and decode on another."""
    model = load(checkpoint("qwen3"), "float32")
    layers = model._native
    assert layers is not None
    rows = [torch.randn(count, model.config.hidden_size) for count in (1, 5)]

    def queries(x: Tensor) -> Tensor:
        table = model._rotary.table(torch.arange(len(x)), torch.float32)
        return layers.queries(0, x.clone(), None, table)[0]

    def all_right(x: Tensor) -> bool:
        return all(torch.equal(queries(x), expected[len(x)]) for _ in range(1000))

    expected = {len(x): queries(x) for x in rows}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert all(threads.map(all_right, rows))
    finally:
        sys.setswitchinterval(before)
