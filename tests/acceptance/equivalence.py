"""Greedy float32 output of whole clusters against Hugging Face transformers, token by token.

    python tests/acceptance/equivalence.py [--shapes 1,1 2,2] [--transports ucx tcp] [--lengths ..]
        [--device cuda]

Prints one line per prompt; exit code 1 if any differs. A different pick where the reference's two
best logits are within 1e-3 is reported as a near tie. Also checked: the log-probabilities of the
first token's alternatives (1e-3), and for spread requests the bytes of decoding. With
`--device cuda` all shards share the machine's GPUs, or its only one.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import torch
from passage import passage
from transformers import AutoModelForCausalLM, AutoTokenizer

from sps2.cli.local import running_cluster
from sps2.common.client import Client
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

TOLERANCE = 1e-3
SHAPES = ["1,1", "2,1", "2,2", "3,2", "4,3"]
LENGTHS = [1, 2, 7, 64, 300, 1025, 4096, 7900]


@dataclass
class Reference:
    prompt: list[int]
    tokens: list[int]
    margins: list[float]
    first: torch.Tensor
    """Log-probabilities of the first token, [vocab]."""


@torch.inference_mode()
def reference(model: torch.nn.Module, prompt: list[int], tokens: int) -> Reference:
    ids, cache = torch.tensor([prompt]), None
    picked: list[int] = []
    margins: list[float] = []
    first = None
    for _ in range(tokens):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[0, -1].float()
        first = logits.log_softmax(-1) if first is None else first
        best = logits.topk(2)
        picked.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        ids = torch.tensor([[picked[-1]]])
    assert first is not None
    return Reference(prompt, picked, margins, first)


def check(
    client: Client, tokenizer: Tokenizer, expected: Reference, sizes: tuple[int, int, int]
) -> bool:
    started = time.monotonic()
    answer = client.complete(
        expected.prompt,
        max_tokens=len(expected.tokens),
        temperature=0,
        ignore_eos=True,
        logprobs=10,
    )
    elapsed = time.monotonic() - started
    choice, usage = answer.choices[0], answer.usage
    assert choice.logprobs is not None
    assert usage.sps2 is not None
    extension = usage.sps2
    verdict, good = "equal", True
    for index, token in enumerate(expected.tokens):
        if choice.logprobs.tokens[index] != tokenizer.token_text(token):
            margin = expected.margins[index]
            good = margin < TOLERANCE
            verdict = f"{'near tie' if good else 'DIFFERENT'} at {index} (margin {margin:.2g})"
            break
    likely = {tokenizer.token_text(int(token)): token for token in expected.first.topk(50).indices}
    top = choice.logprobs.top_logprobs[0]
    assert top is not None
    off = max(abs(value - float(expected.first[likely[text]])) for text, value in top.items())
    layers, heads, head_dim = sizes
    remote = len(extension.placements) - 1
    steps = len(expected.tokens) - 1
    assert extension.q_bytes is not None
    assert extension.state_bytes is not None
    per_token = (extension.q_bytes + extension.state_bytes) / steps / layers
    formula = heads * (2 * head_dim * 4 + 4) * remote
    bytes_good = abs(per_token - formula) <= 0.1 * formula
    spread = " ".join(
        f"{place.shard}:{place.span.start}-{place.span.stop}" for place in extension.placements
    )
    print(
        f"  {len(expected.prompt):5} tokens: {verdict}; first log-probabilities off by {off:.1e};"
        f" sp {extension.sp_degree}; {spread}; decode bytes/token/layer {per_token:.0f}"
        f" (formula {formula}); {elapsed:.1f} s",
        flush=True,
    )
    return good and off < TOLERANCE and bytes_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--transports", nargs="+", default=["ucx", "tcp"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="of the shards: cpu or cuda")
    arguments = parser.parse_args()

    folder = locate(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    sizes = (config.num_hidden_layers, config.num_attention_heads, config.head_dim)
    text = tokenizer(passage(max(arguments.lengths)))["input_ids"]
    texts = Tokenizer(folder)
    expected = []
    for offset, length in enumerate(arguments.lengths):
        prompt = text[17 * offset : 17 * offset + length]
        assert len(prompt) == length
        expected.append(reference(model, prompt, arguments.tokens))
        print(f"reference of {length} tokens done", flush=True)
    del model

    good = True
    for transport in arguments.transports:
        for shape in arguments.shapes:
            prefill, decode = map(int, shape.split(","))
            print(f"{transport} ({prefill}, {decode})", flush=True)
            with running_cluster(
                name="acceptance",
                model=arguments.model,
                prefill=prefill,
                decode=decode,
                device=arguments.device,
                dtype="float32",
                transport=transport,
                kv={"prefix_cache": False},  # every answer is to be computed whole
            ) as client:
                for each in expected:
                    good &= check(client, texts, each, sizes)
    print("all equal" if good else "DIFFERENCES")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
