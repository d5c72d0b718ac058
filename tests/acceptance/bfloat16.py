"""What bfloat16 costs: mean KL divergence of next-token distributions from float32.

    python tests/acceptance/bfloat16.py [--tokens 2048] [--ranks 1 2]

The reference is transformers in float32; transformers in bfloat16 is the measure, and SPS2's
prefill in bfloat16 (in-process, by ring attention over `ranks` ranks) must not exceed it by more
than 10 %. Exit code 1 if it does.
"""

import argparse
import sys

import torch
from passage import passage
from transformers import AutoModelForCausalLM

from sps2.cli.bench.group import fill
from sps2.common.messages import Scheme
from sps2.common.model.llama import Llama
from sps2.common.model.weights import load
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

ALLOWED = 1.10


def ring_logits(model: Llama, ids: torch.Tensor, ranks: int) -> torch.Tensor:
    """Logits of all positions, [tokens, vocab], in order of position."""
    return model.logits(fill(model, ids.tolist(), Scheme("ring"), ranks).hidden)


@torch.inference_mode()
def transformers_logits(folder: str, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    logits: torch.Tensor = model(ids[None], use_cache=False).logits[0].float()
    return logits


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over positions of KL(exact || other), in nats."""
    total = 0.0
    for rows in range(0, len(exact), 256):
        p, q = (x[rows : rows + 256].double().log_softmax(-1) for x in (exact, other))
        total += float((p.exp() * (p - q)).sum())
    return total / len(exact)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()

    folder = locate(arguments.model)
    text = Tokenizer(folder).encode(passage(arguments.tokens))[: arguments.tokens]
    ids = torch.tensor(text)
    exact = transformers_logits(str(folder), ids, torch.float32)
    theirs = divergence(exact, transformers_logits(str(folder), ids, torch.bfloat16))
    print(f"{len(ids)} tokens; transformers bfloat16: {theirs:.3e} nats")
    good = True
    model = load(folder, "bfloat16")
    for ranks in arguments.ranks:
        ours = divergence(exact, ring_logits(model, ids, ranks))
        good &= ours <= ALLOWED * theirs
        print(f"SPS2 bfloat16, {ranks} ranks: {ours:.3e} nats, {ours / theirs:.3f} of theirs")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
