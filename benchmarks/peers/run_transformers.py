"""transformers behind lines.py: `python run_transformers.py FOLDER DTYPE THREADS`.

Several prompts, which have one length, are one batch from the first step to the last.
"""

import sys
from collections.abc import Iterator

import torch
import transformers
from transformers import AutoModelForCausalLM

from peers.lines import serve


def main() -> None:
    folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> Iterator[list[int]]:
        ids, cache = torch.tensor(prompts), None
        for _ in range(tokens):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            yield list(range(len(prompts)))

    serve(f"{transformers.__version__}, torch {torch.__version__}", generate)


if __name__ == "__main__":
    main()
