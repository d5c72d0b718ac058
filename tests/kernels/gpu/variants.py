"""Prints which launches of random work Triton would compile that those at start did not.

Run without the interpreter: nothing is compiled or computed, only Triton's keys are compared.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction, compute_cache_key

sys.path.insert(0, str(Path(__file__).parents[2] / "acceptance"))

from gpu_compile import Absent

from sps2.kernels import PagedRows, Run, State
from sps2.kernels.contracts import BLOCK, Choices
from sps2.kernels.gpu import (
    append,
    csa_scores,
    decode,
    flash,
    kv_quantize,
    launches,
    merge,
    packed,
    rows,
    sample,
)

CPU = torch.device("cpu")
MODELS = [
    launches.Model(8, 2, 64, 512, 1408, torch.bfloat16, (False,), False),
    launches.Model(9, 3, 64, 576, 1536, torch.bfloat16, (True, False), True),
    launches.Model(4, 4, 128, 512, 1000, torch.float16, (True,), True, True),
    launches.Model(1, 1, 80, 80, 130, torch.float32, (False,), False),
]


def random_work(model: launches.Model, dice: random.Random) -> None:
    """What shards do, with any numbers of rows, keys, pages and heads."""
    heads, kv_heads, dim = model.heads, model.kv_heads, model.dim
    group, scale = heads // kv_heads, dim**-0.5
    n, m, slots = dice.randint(1, 700), dice.randint(1, 900), 16 * dice.randint(40, 90)
    q = torch.empty(n, heads, dim, dtype=model.dtype)
    k = torch.empty(m, kv_heads, dim, dtype=model.dtype)
    pool = torch.empty(kv_heads, slots, dim, dtype=model.dtype).transpose(0, 1)
    scales = None
    if model.eight_bits:
        pool = pool.to(torch.int8)
        scales = (torch.empty(kv_heads, slots).T,) * 2
    window = (dice.choice(model.windowed) and dice.randint(1, 500)) or None
    first = dice.randrange(kv_heads)
    some = slice(first, dice.randint(first + 1, kv_heads))
    mine = q[dice.randrange(n) :, some.start * group : some.stop * group]
    parts = [([Run(0, m, len(mine))], [Run(0, 0, m)])]
    flash.attend(mine, k[:, some], k[:, some], parts, scale, window)
    out, lse = torch.empty(n, heads, dim), torch.empty(n, heads)
    state = State(*(x[n - len(mine) :, some.start * group : some.stop * group] for x in (out, lse)))
    held = [([Run(0, slots, len(mine))], [Run(0, 0, slots)])]
    by = None if scales is None else (scales[0][:, some], scales[1][:, some])
    flash.attend(mine, pool[:, some], pool[:, some], held, scale, window, state, by)

    count = dice.randint(1, 40)
    common = dice.choice((0, 256))
    runs = [[Run(0, 0, common), Run(common + r, common, 1 + r % 9)] for r in range(count)]
    batch = PagedRows(runs, [common + 500] * count)
    decode.attend(q[:1].expand(count, -1, -1), pool, pool, batch, scale, window, scales)
    other = State(out.to(dice.choice((model.dtype, torch.float32))), lse)
    merge.merge_many([State(out, lse), other])
    append.append(k[:m], k[:m], pool, pool, torch.zeros(m, dtype=torch.int64), scales)

    x = torch.empty(n, model.hidden)
    weight = torch.empty(model.hidden, dtype=model.dtype)
    rows.add_norm(x, dice.choice((None, x.to(model.dtype))), weight, 1e-5)
    gate = torch.empty(n, model.inner, dtype=model.dtype)
    rows.swiglu(gate, gate)
    table = (torch.empty(n, 1, dim, dtype=model.dtype),) * 2
    rows.rotate(q, table)
    if model.normed:
        rows.add_norm(q.flatten(0, 1), None, weight[:dim], 1e-5)
    vocab = dice.randint(2, 900)
    one = torch.ones(n)
    choices = Choices(one, one, one.int(), one, one.double())
    sample.sample(torch.empty(n, vocab), choices)
    if model.windowed != (True,):
        csa_scores.score(q, k, scale, dice.choice((None, torch.arange(n))))
        which = torch.ones(kv_heads, -(-m // BLOCK), dtype=torch.bool)
        made, _ = kv_quantize.pack_all_on_device(k, k, which, dice.choice((4, 8)))
        kv_quantize.unpack(made, model.dtype)
        one = q[:, :group]
        more = dice.choice((None, State(out[:, :group], lse[:, :group])))
        packed.attend(one, made, torch.tensor([0, len(made.k)]), scale, more)


def main() -> None:
    keys: set[tuple[str, str]] = set()

    def key_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        _, known, _, _, binder = self.device_caches[90]
        options["debug"] = False
        _, special, chosen = binder(*args, **options)
        keys.add((self.fn.__name__, compute_cache_key(known, special, chosen)))

    triton.runtime.driver.set_active(Absent(90))
    JITFunction.run = key_only
    dice = random.Random(int(sys.argv[1]))
    for model in MODELS:
        keys.clear()
        launches.launch_all(model, CPU)
        at_start = set(keys)
        for _ in range(40):
            random_work(model, dice)
        for name, key in sorted(keys - at_start):
            print(f"{model}: {name} {key}")
        print(f"{len(at_start)} at start", file=sys.stderr)


if __name__ == "__main__":
    main()
