"""The Triton kernels compile to machine code of Ampere and Hopper; no GPU is needed for that.

python tests/acceptance/gpu_compile.py 80 90
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sps2.kernels import PagedRows, Run, State
from sps2.kernels.contracts import Choices
from sps2.kernels.gpu import (
    append,
    csa_scores,
    decode,
    flash,
    kv_quantize,
    merge,
    packed,
    rows,
    sample,
)

DTYPE = torch.bfloat16


class Absent:
    """A driver that knows its target and has no device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def launch_all() -> None:
    """Every kernel once, in shapes that models have; nothing is computed."""
    runs, scale = [Run(0, 0, 256)], 0.1
    q = torch.empty(256, 8, 128, dtype=DTYPE)
    k = torch.empty(2, 256, 128, dtype=DTYPE).transpose(0, 1)
    flash.attend(q, k, k, [(runs, runs)], scale)
    paged = PagedRows([[Run(0, 0, 256)]], [255])
    decode.attend(q[:1], k.to(torch.int8), k.to(torch.int8), paged, scale, None, (K8, K8))
    csa_scores.score(q, k, scale, torch.arange(256))
    which = torch.ones(2, 4, dtype=torch.bool)
    made, _ = kv_quantize.pack_all_on_device(k, k, which, 8)
    kv_quantize.unpack(made, DTYPE)
    packed.attend(q, made, torch.tensor([0, 4, 8]), scale)
    state = State(torch.empty(16, 4, 128), torch.empty(16, 4))
    merge.merge_many([state, state])
    x = torch.empty(16, 1024, dtype=DTYPE)
    rows.swiglu(x, x)
    rows.add_norm(x, x, x[0], 1e-5)
    table = x[:, None, :128], x[:, None, :128]
    append.append(
        k[:16], k[:16], k.to(torch.int8), k.to(torch.int8), torch.arange(16), (K8, K8), table
    )
    ones, whole = torch.ones(16), torch.ones(16, dtype=torch.int64)
    sample.sample(torch.empty(16, 4096), Choices(ones, ones, whole.int(), ones, whole))
    rows.rotate(x.view(16, 8, 128), table)


K8 = torch.empty(2, 256).T


def main() -> None:
    run, names = JITFunction.run, set()

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> object:
        kernel = run(self, *args, warmup=True, **options)
        assert kernel.asm["cubin"]
        names.add(self.fn.__name__)
        return kernel

    JITFunction.run = compile_only
    for capability in map(int, sys.argv[1:]):
        names.clear()
        triton.runtime.driver.set_active(Absent(capability))
        launch_all()
        print(f"{capability}: {len(names)} kernels compile: {' '.join(sorted(names))}")


if __name__ == "__main__":
    main()
