"""Prefill attention beside torch's flash kernel and a plain matrix product, in turn.

    python benchmarks/attention.py [--threads 1 2] [--lengths 2048 4096 8000]

Shapes are SmolLM2-135M's: 9 heads, 3 KV heads of dimension 64, causal. Each figure is the best of
several runs that alternate, so that whatever else the machine does hits all of them. The error is
that of the output, root mean square, against float32, relative to torch's own.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sps2.kernels import PagedRows, Run, attention, paged_attention

HEADS, KV_HEADS, DIM, LAYERS = 9, 3, 64, 30
GEMM = 2048


def best(works: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Seconds of the fastest run of each; the first run of each only warms up."""
    seconds = dict.fromkeys(works, float("inf"))
    for turn in range(repeat + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's kernel on the same tensors, [1, heads, tokens, dim] with repeated KV heads."""
    out: Tensor = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out


def error(out: Tensor, exact: Tensor) -> float:
    return float((out.float() - exact).pow(2).mean().sqrt())


def prefill(tokens: int, dtype: torch.dtype, repeat: int) -> str:
    q = torch.randn(tokens, HEADS, DIM).to(dtype)
    k, v = (torch.randn(tokens, KV_HEADS, DIM).to(dtype) for _ in range(2))
    wide = [
        x.repeat_interleave(HEADS // x.shape[1], 1).transpose(0, 1)[None].contiguous()
        for x in (q, k, v)
    ]
    a, b = (torch.randn(GEMM, GEMM).to(dtype) for _ in range(2))
    runs = [Run(0, 0, tokens)]
    times = best(
        {
            "sps2": lambda: attention(q, k, v, queries=runs, keys=runs),
            "flash": lambda: flash(*wide),
            "gemm": lambda: a @ b,
        },
        repeat,
    )
    exact = flash(*(x.float() for x in wide))[0].transpose(0, 1)
    ours = error(attention(q, k, v, queries=runs, keys=runs).out, exact)
    theirs = error(flash(*wide)[0].transpose(0, 1), exact)

    work = 2 * tokens * (tokens + 1) * HEADS * DIM / 1e9
    peak = 2 * GEMM**3 / 1e9 / times["gemm"]
    mine, torchs = work / times["sps2"], work / times["flash"]
    relative = f"{ours / theirs:.2f}" if dtype != torch.float32 else "-"
    return (
        f"{mine:.0f} | {torchs:.0f} | {peak:.0f} | {mine / torchs:.2f} | {mine / peak:.2f} |"
        f" {relative}"
    )


def decode(context: int, batch: int, dtype: torch.dtype, repeat: int) -> float:
    """Seconds of attention for one step of all layers, whose KV does not fit the caches."""
    pool = torch.randn(LAYERS, 2, KV_HEADS, batch * context, DIM).to(dtype)
    layers = [(layer[0].transpose(0, 1), layer[1].transpose(0, 1)) for layer in pool]
    q = torch.randn(batch, HEADS, DIM).to(dtype)
    runs = [[Run(row * context, 0, context)] for row in range(batch)]
    rows = PagedRows(runs, [context - 1] * batch)

    def step() -> None:
        for k, v in layers:
            paged_attention(q, k, v, rows)

    return best({"step": step}, repeat)["step"]


def shared(prefix: int, own: int, batch: int, kv_dtype: torch.dtype, repeat: int) -> str:
    """Milliseconds of a step for requests that share a prefix: together, and one by one."""
    slots = prefix + batch * own
    pool = torch.randn(LAYERS, 2, KV_HEADS, slots, DIM)
    layers = [(layer[0].transpose(0, 1), layer[1].transpose(0, 1)) for layer in pool.to(kv_dtype)]
    scales = None
    if kv_dtype == torch.int8:
        scale = torch.rand(2, KV_HEADS, slots)
        scales = scale[0].T, scale[1].T
    dtype = torch.float32 if kv_dtype == torch.float32 else torch.bfloat16
    q = torch.randn(batch, HEADS, DIM).to(dtype)
    runs = [[Run(0, 0, prefix), Run(prefix + row * own, prefix, own)] for row in range(batch)]
    last = prefix + own - 1
    together = PagedRows(runs, [last] * batch)
    alone = [PagedRows([each], [last]) for each in runs]

    def step() -> None:
        for k, v in layers:
            paged_attention(q, k, v, together, scales=scales)

    def steps() -> None:
        for k, v in layers:
            for row, rows in enumerate(alone):
                paged_attention(q[row : row + 1], k, v, rows, scales=scales)

    times = best({"together": step, "alone": steps}, repeat)
    read = sum(rows.keys_read for rows in alone) / together.keys_read
    ratio = times["alone"] / times["together"]
    together_ms, alone_ms = 1000 * times["together"], 1000 * times["alone"]
    return f"{together_ms:.1f} | {alone_ms:.1f} | {ratio:.2f} | {read:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8000])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()

    print("Prefill, GFLOP/s\n")
    print("| threads | dtype | tokens | sps2 | flash | gemm | / flash | / gemm | error / flash's |")
    print("|---|---|---|---|---|---|---|---|---|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtypes:
            for tokens in arguments.lengths:
                figures = prefill(tokens, getattr(torch, name), arguments.repeat)
                print(f"| {threads} | {name} | {tokens} | {figures} |", flush=True)

    print(f"\nDecode, ms per step of {LAYERS} layers\n")
    print("| threads | dtype | requests | context | ms |")
    print("|---|---|---|---|---|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtypes:
            for batch, context in ((1, 512), (1, 2048), (8, 512), (8, 2048)):
                seconds = decode(context, batch, getattr(torch, name), arguments.repeat)
                print(f"| {threads} | {name} | {batch} | {context} | {1000 * seconds:.2f} |")

    print("\nDecode of requests with 100 tokens behind a prefix that they share, ms per step\n")
    print("| threads | KV | requests | prefix | together | alone | ratio | ratio of keys read |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in (*arguments.dtypes, "int8"):
            for batch, prefix in ((2, 4000), (8, 4000), (32, 4000)):
                figures = shared(prefix, 100, batch, getattr(torch, name), arguments.repeat)
                print(f"| {threads} | {name} | {batch} | {prefix} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
