"""What does not fit is refused before C++ reads a byte of it, a stale build before anything."""

import ctypes
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sps2.kernels import PagedRows, Run, State, attention, merge, native, paged_attention
from sps2.kernels.native import abi
from sps2.kernels.native import layer as layers
from sps2.kernels.native import rows as row_kernels
from sps2.kernels.native import weights as weight_kernels
from sps2.kernels.weight_forms import FORMS, QuantisedWeight
from sps2.kernels.weight_quantize import quantise

pytestmark = pytest.mark.skipif(not native.level, reason="there are no C++ kernels")


@pytest.fixture(autouse=True)
def level() -> int:
    """The best there is: what is checked before C++ is the same for all."""
    return native.level


def q(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape or (4, 4, 32), **options)


def pool(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape or (16, 2, 32), **options)


def attend(queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> object:
    runs = options.pop("keys", [Run(0, 0, len(k))])
    return native.attend(
        *(queries, k, v, [Run(0, 0, len(queries))], runs, 0.1, None),
        options.get("state"),
        options.get("scales"),
    )


def decode(
    queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: int = 8, **options: Any
) -> object:
    rows = PagedRows([[Run(0, 0, slots)]] * 4, [slots - 1] * 4)
    return native.decode(
        *(queries, k, v, options.get("at", rows.at), rows.plan(None), 0.1, None),
        options.get("scales"),
    )


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "head size": (lambda: attend(q(4, 4, 64), pool(), pool()), "k has shape"),
    "heads": (lambda: attend(q(4, 3, 32), pool(), pool()), "do not divide"),
    "fewer values": (lambda: attend(q(), pool(), pool(15, 2, 32)), "v has shape"),
    "dtype": (lambda: attend(q(), pool(dtype=torch.bfloat16), pool()), "k is bfloat16"),
    "no scales": (lambda: attend(q(), *[pool(dtype=torch.int8)] * 2), "k is int8"),
    "keys outside": (lambda: attend(q(), pool(), pool(), keys=[Run(9, 0, 8)]), "outside the 16"),
    "state of other rows": (
        lambda: attend(q(), pool(), pool(), state=State(q(3, 4, 32), q(3, 4))),
        "state.out has shape",
    ),
    "state of half the heads": (
        lambda: attend(q(), pool(), pool(), state=State(q(4, 8, 32)[:, ::2], q(4, 4))),
        "must be contiguous",
    ),
    "state in bfloat16": (
        lambda: attend(q(), pool(), pool(), state=State(q().bfloat16(), q(4, 4))),
        "state.out is bfloat16",
    ),
    "scales by token": (
        lambda: attend(q(), *[pool(dtype=torch.int8)] * 2, scales=(q(16, 2), q(16, 2))),
        "by KV head",
    ),
    "decode, head size": (lambda: decode(q(4, 4, 64), pool(), pool()), "k has shape"),
    "decode, heads": (lambda: decode(q(4, 3, 32), pool(), pool()), "do not divide"),
    "decode, fewer rows": (lambda: decode(q(3, 4, 32), pool(), pool()), "has shape"),
    "decode, slots": (lambda: decode(q(), pool(), pool(), slots=17), "17 slots"),
    "decode, other strides": (
        lambda: decode(q(), pool(), pool(2, 16, 32).transpose(0, 1)),
        "strides",
    ),
    "decode, positions": (
        lambda: decode(q(), pool(), pool(), at=torch.zeros(4, dtype=torch.int32)),
        "positions is int32",
    ),
    "score": (lambda: native.score(q(), pool(16, 2, 64), torch.zeros(4).int(), [], 1.0), "k has"),
    "merge": (
        lambda: native.merge(State(q(), q(4, 4)), State(q(3, 4, 32), q(3, 4))),
        "state.out has shape",
    ),
    "merge, turned lse": (
        lambda: native.merge(State(q(), q(4, 4)), State(q(), q(4, 4).t())),
        "must be contiguous",
    ),
    "pack": (
        lambda: native.pack(pool(), pool(15, 2, 32), torch.zeros(1, 2, dtype=torch.int64), 8),
        "v has shape",
    ),
    "unpack": (
        lambda: native.unpack(
            native._room(2, 32, 8)[:3] + native._room(1, 32, 8)[3:], 32, q().dtype
        ),
        "packed.v_scale has shape",
    ),
    "product": (lambda: layers.product(q(2, 32), (q(8, 64), None)), "x has shape"),
    "product, bias": (lambda: layers.product(q(2, 32), (q(8, 32), q(7))), "bias has shape"),
    "product, quantised": (
        lambda: layers.product(q(2, 32), (quantise(q(16, 64), 4), None)),
        "x has shape",
    ),
    "swiglu": (lambda: row_kernels.swiglu(q(3, 32), q(2, 32)), "up has shape"),
    "norm": (lambda: row_kernels.add_norm(q(3, 32), None, q(16), 1e-5), "weight has shape"),
    "norm, sum": (lambda: row_kernels.add_norm(q(3, 32), q(2, 32), q(32), 1e-5), "plus has shape"),
    "norm, dtype": (
        lambda: row_kernels.add_norm(q(3, 32).bfloat16(), None, q(32), 1e-5),
        "x is bfloat16",
    ),
    "rotate": (lambda: row_kernels.rotate(q(), q(3, 1, 32), q(4, 1, 32)), "has shape"),
    "restore": (
        lambda: weight_kernels.restore(
            QuantisedWeight(torch.zeros(1, 1, 99, dtype=torch.uint8), 16, FORMS["Q4_0"]), q().dtype
        ),
        "99 bytes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_states_that_lie_turned_are_merged_right() -> None:
    torch.manual_seed(1)
    lse = [torch.randn(4, 3) for _ in range(2)]
    out = [torch.randn(3, 4, 32) for _ in range(2)]
    straight = merge(*(State(o, each.t().contiguous()) for o, each in zip(out, lse, strict=True)))
    turned = merge(*(State(o, each.t()) for o, each in zip(out, lse, strict=True)))
    assert torch.equal(straight.out, turned.out)
    assert torch.equal(straight.lse, turned.lse)


def test_wrong_shapes_are_refused_by_the_public_functions() -> None:
    rows = PagedRows([[Run(0, 0, 8)]], [7])
    with pytest.raises(ValueError, match="k has shape"):
        paged_attention(q(1, 4, 64), pool(), pool(), rows)
    with pytest.raises(ValueError, match="k has shape"):
        attention(q(4, 4, 64), pool(), pool(), queries=[Run(0, 0, 4)], keys=[Run(0, 0, 16)])


def test_a_build_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Grown(ctypes.Structure):
        _fields_ = (*abi.Decoding._fields_, ("more", ctypes.c_int64))

    assert native._load()[0] is not None
    changed = tuple(Grown if each is abi.Decoding else each for each in abi.STRUCTURES)
    monkeypatch.setattr(abi, "STRUCTURES", changed)
    library, wrong = native._load()
    assert library is None
    assert "other sources" in wrong


def test_only_a_build_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = next(Path(native.__file__).parent.glob("_attention*.so"))
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    assert native._load() == (None, "")
    (tmp_path / "_attention.cpython-301-riscv.so").write_text("of another machine")
    library, wrong = native._load()
    assert library is None
    assert "cannot be loaded" in wrong
    shutil.copy(built, tmp_path / "_attention.cpython-399.so")
    assert native._load()[0] is not None


def alone(code: str) -> str:
    """What a Python of its own prints; it may end by a signal, or never."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_child_of_a_fork_has_threads_of_its_own() -> None:
    code = """
        import os, signal, torch
        from sps2.kernels.native import rows
        torch.set_num_threads(2)
        x = torch.randn(64, 64)
        want = rows.swiglu(x, x)
        child = os.fork()
        if not child:
            signal.alarm(120)  # its parent waits for it
            os._exit(not torch.equal(rows.swiglu(x, x), want))
        print(os.waitpid(child, 0)[1])
    """
    assert alone(code) == "0"


def test_no_memory_is_an_error_and_large_scratch_is_given_back() -> None:
    code = """
        import gc, resource, torch
        from pathlib import Path
        from sps2.kernels import Run, native
        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        torch.set_num_threads(1)
        def attend(tokens):
            k = torch.zeros(tokens, 1, 64, dtype=torch.int8)
            scale = torch.ones(1, tokens).t()
            before = resident()
            state = native.attend(torch.ones(4, 1, 64), k, k, [Run(0, tokens, 4)],
                                  [Run(0, 0, tokens)], 0.1, None, None, (scale, scale))
            return resident() - before, state
        attend(64)
        kept, _ = attend(300_000)  # 146 MiB of scratch
        print(kept < 40 << 20)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20),) * 2)
        try:
            attend(300_000)
        except MemoryError as error:
            print(error)
        print(float(attend(64)[1].lse[0, 0]) > 0)
    """
    assert alone(code).splitlines() == ["True", "there is not enough memory for attend", "True"]


@pytest.mark.parametrize("dtype", native.FLOATING)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (7, 96), (130, 64), (576, 1536)])
@pytest.mark.parametrize("rows", [16, 17, 31, 33, 48, 49, 64, 65, 128])
def test_products_of_many_rows(
    level: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    """In bfloat16 a vector has several rows, and the last one is filled up."""
    if not level:
        return
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    found = layers.product(x, (weight, bias))
    expected = x.double() @ weight.double().t() + bias.double()
    sizes = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    assert ((found - expected).abs() / sizes).max() < 1e-5
