"""SPS2 beside Hugging Face transformers: the same weights, prompts and number of threads.

    python benchmarks/bench.py [--lengths 512 2048 4096 7900] [--repeat 3] [--threads 2]

Both run in turn, prompt by prompt, so that whatever else the machine does hits both; medians and
their ratio are printed as a Markdown table and written as JSON under benchmarks/results/.
SPS2 is two prefill and two decode shards, each with half of the threads (a request's prefill and
its decoding take turns), over its SDK; transformers runs in this process without a server.
"""

import argparse
import datetime
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from transformers import AutoModelForCausalLM

from sps2.cli.local import running_cluster
from sps2.common.client import Client
from sps2.common.models import locate

Times = dict[str, list[float]]


@torch.inference_mode()
def transformers_times(model: Any, prompt: list[int], tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and between those that follow."""
    ids, cache = torch.tensor([prompt]), None
    stamps = [time.perf_counter()]
    for _ in range(tokens):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        stamps.append(time.perf_counter())
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    return gaps[0], gaps[1:]


def sps2_times(client: Client, prompt: list[int], tokens: int) -> tuple[float, list[float]]:
    """The same through the whole stack, as a client sees it."""
    stamps = [time.perf_counter()]
    for chunk in client.complete_stream(
        prompt, max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0
    ):
        if chunk.choices and chunk.choices[0].logprobs:
            stamps += [time.perf_counter()] * len(chunk.choices[0].logprobs.tokens)
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    return gaps[0], gaps[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 4096, 7900])
    parser.add_argument("--context", type=int, default=2048, help="of the decoding measurement")
    parser.add_argument("--tokens", type=int, default=64, help="decoded to measure TBT")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="in all, for each side")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    folder = locate(arguments.model)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    full = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    vocabulary = half.config.vocab_size
    random.seed(0)
    ttft: dict[str, Times] = {}
    tbt: Times = {"sps2": [], "transformers bfloat16": [], "transformers float32": []}
    flags = {"model": arguments.model, "dtype": "bfloat16", "threads": arguments.threads // 2}
    with running_cluster(name="bench", prefill=2, decode=2, **flags) as client:
        sides: dict[str, Callable[[list[int], int], tuple[float, list[float]]]] = {
            "sps2": lambda prompt, tokens: sps2_times(client, prompt, tokens),
            "transformers bfloat16": lambda prompt, n: transformers_times(half, prompt, n),
            "transformers float32": lambda prompt, n: transformers_times(full, prompt, n),
        }
        for side in sides.values():
            side([1] * 64, 4)
        for length in arguments.lengths:
            times = ttft.setdefault(str(length), {"sps2": [], "transformers bfloat16": []})
            for _ in range(arguments.repeat):
                prompt = [random.randrange(100, vocabulary) for _ in range(length)]
                for name in times:
                    times[name].append(sides[name](prompt, 1)[0])
        for _ in range(arguments.repeat):
            prompt = [random.randrange(100, vocabulary) for _ in range(arguments.context)]
            for name in tbt:
                tbt[name].append(statistics.median(sides[name](prompt, arguments.tokens)[1]))
    report(arguments, ttft, tbt)


def report(arguments: argparse.Namespace, ttft: dict[str, Times], tbt: Times) -> None:
    """Print the table, write the JSON."""
    print("| measure | SPS2 | transformers | ratio |\n|---|---|---|---|")
    for length, times in ttft.items():
        ours, theirs = (statistics.median(times[name]) for name in times)
        print(f"| TTFT, {length} tokens | {ours:.2f} s | {theirs:.2f} s | {ours / theirs:.2f} |")
    medians = {name: statistics.median(values) for name, values in tbt.items()}
    best = min((value, name) for name, value in medians.items() if name != "sps2")
    ours = medians["sps2"]
    print(
        f"| TBT, context {arguments.context} | {1e3 * ours:.1f} ms | {1e3 * best[0]:.1f} ms "
        f"({best[1].split()[1]}) | {ours / best[0]:.2f} |"
    )
    now = datetime.datetime.now(datetime.UTC)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{now:%Y-%m-%d}-transformers.json"
    record = {
        "date": now.isoformat(timespec="seconds"),
        "arguments": vars(arguments),
        "machine": machine(),
        "ttft_s": ttft,
        "tbt_median_s": tbt,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
