"""Entropy coding: what comes back, in how many bytes, and what damaged data do."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from sps2.kernels import entropy, native
from sps2.kernels.entropy_tables import RANGE, SLOTS, frequencies_of, static, static_costs

LENGTHS = [0, 1, 15, 16, 17, 31, 32, 33, 64, 100, 1000]


def bytes_like_exponents(count: int) -> Tensor:
    return (torch.randn(count).abs().log2() * 1.5 + 120).clamp(0, 255).to(torch.uint8)


def codes_of(channels: int, count: int, scale: float) -> Tensor:
    """Channels that are all 0, narrow, wide, and with the largest numbers there are."""
    wide = torch.linspace(0, 2, channels)[:, None] * scale
    codes = (torch.randn(channels, count) * wide).round().clamp(-(2**15), 2**15 - 1)
    if count > 40:
        codes[-1, 5], codes[1, 7], codes[2, 8:40] = -(2**15), 2**15 - 1, RANGE
    return codes.to(torch.int16)


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(native, "built", False)
    return monkeypatch


@pytest.mark.parametrize("count", LENGTHS)
def test_bytes_come_back(count: int) -> None:
    torch.manual_seed(count)
    symbols = bytes_like_exponents(count)
    assert torch.equal(entropy.decode_bytes(entropy.encode_bytes(symbols), count), symbols)


@pytest.mark.parametrize("scale", [0.0, 0.2, 1.0, 8.0, 100.0, 1e4])
@pytest.mark.parametrize("count", LENGTHS)
def test_codes_come_back(count: int, scale: float) -> None:
    torch.manual_seed(count)
    codes = codes_of(5, count, scale)
    data = entropy.encode_channels(codes)
    assert torch.equal(entropy.decode_channels(data, 5, count), codes)


def test_bytes_that_are_all_equal_or_all_there_are() -> None:
    for symbols in (torch.full((999,), 7), torch.arange(256).repeat(9), torch.arange(256)):
        data = entropy.encode_bytes(symbols.to(torch.uint8))
        assert torch.equal(entropy.decode_bytes(data, len(symbols)), symbols.to(torch.uint8))


def test_no_channels() -> None:
    data = entropy.encode_channels(torch.empty(0, 9, dtype=torch.int16))
    assert entropy.decode_channels(data, 0, 9).shape == (0, 9)


def test_torch_makes_the_same_stream(in_torch: pytest.MonkeyPatch) -> None:
    symbols, codes = bytes_like_exponents(333), codes_of(4, 101, 30)
    there = entropy.encode_bytes(symbols), entropy.encode_channels(codes)
    assert torch.equal(entropy.decode_bytes(there[0], 333), symbols)
    assert torch.equal(entropy.decode_channels(there[1], 4, 101), codes)
    in_torch.undo()
    if native.built:
        here = entropy.encode_bytes(symbols), entropy.encode_channels(codes)
        assert all(map(torch.equal, here, there))


def test_bytes_take_little_more_than_their_entropy() -> None:
    torch.manual_seed(0)
    symbols = bytes_like_exponents(1 << 17)
    shares = symbols.bincount(minlength=256) / len(symbols)
    ideal = -(shares * shares.clamp(min=1e-9).log2()).sum() * len(symbols) / 8
    assert ideal < len(entropy.encode_bytes(symbols)) < 1.005 * ideal + 500


@pytest.mark.parametrize("laplace", [True, False])
@pytest.mark.parametrize("scale", [0.2, 0.7, 2.0, 9.0, 60.0])
def test_codes_take_little_more_than_their_entropy(scale: float, laplace: bool) -> None:
    torch.manual_seed(0)
    shape = 8, 1 << 13
    x = torch.distributions.Laplace(0, 1).sample(shape) if laplace else torch.randn(shape)
    codes = (x * scale).round().to(torch.int16)
    counts = (codes.long() + 2**15).flatten().bincount()
    shares = counts[counts > 0] / codes.numel()
    ideal = -(shares * shares.log2()).sum() * codes.numel() / 8
    size = len(entropy.encode_channels(codes)) - 64 - len(codes)  # states, half empty; tables
    assert 0.98 * ideal < size < 1.03 * ideal + 0.002 * codes.numel() / 8


def test_tables_are_whole() -> None:
    assert len(static()) == 56
    for each in static():
        assert sum(each.frequencies) == SLOTS
        assert min(each.frequencies) > 0
        assert each.escape == len(each.frequencies) - 1 < 256
        least, most = each.least << each.shift, (each.least + each.escape) << each.shift
        assert -RANGE < least < 0 < most < RANGE
    assert bool((static_costs()[[0, -1]] >= 16).all())


def test_frequencies_sum_up_whatever_is_counted() -> None:
    for counts in (torch.ones(256), torch.tensor([1e9] + [1] * 255), torch.eye(256)[3] * 5):
        frequencies = frequencies_of(counts.int())
        assert int(frequencies.sum()) == SLOTS
        assert torch.equal(frequencies > 0, counts > 0)


def damaged(data: Tensor) -> list[Tensor]:
    """The data cut off, lengthened, and with wrong bits."""
    worse = [data[: len(data) * i // 40] for i in range(40)] + [data[:-1], data[:-2]]
    worse += [torch.cat((data, torch.zeros(n, dtype=torch.uint8))) for n in (1, 2, 200)]
    for i in torch.randint(len(data), (60,)).tolist():
        wrong = data.clone()
        wrong[i] ^= 1 << i % 8
        worse.append(wrong)
    return [*worse, *(torch.randint(256, (n,), dtype=torch.uint8) for n in range(0, 600, 7))]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_damaged_data_are_refused(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "torch":
        request.getfixturevalue("in_torch")
    torch.manual_seed(5)
    symbols, codes = bytes_like_exponents(300), codes_of(3, 70, 8)
    codes = codes.clamp(-40, 40)  # no escapes: these have no redundancy
    for data in damaged(entropy.encode_bytes(symbols)):
        with pytest.raises(ValueError, match=r"damaged|no entropy-coded"):
            entropy.decode_bytes(data, 300)
    for data in damaged(entropy.encode_channels(codes)):
        with pytest.raises(ValueError, match=r"damaged|no entropy-coded"):
            entropy.decode_channels(data, 3, 70)
    with pytest.raises(ValueError, match="not of 301 symbols"):
        entropy.decode_bytes(entropy.encode_bytes(symbols), 301)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="symbols is int16, not uint8"):
        entropy.encode_bytes(torch.zeros(3, dtype=torch.int16))
    with pytest.raises(ValueError, match="codes is float32, not int16"):
        entropy.encode_channels(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="codes has shape"):
        entropy.encode_channels(torch.zeros(3, dtype=torch.int16))


def test_data_at_any_address_in_any_layout() -> None:
    symbols = bytes_like_exponents(500)
    data = torch.cat((torch.zeros(1, dtype=torch.uint8), entropy.encode_bytes(symbols)))
    assert torch.equal(entropy.decode_bytes(data[1:], 500), symbols)
    codes = codes_of(4, 64, 3)
    columns = codes.T.contiguous().T
    assert torch.equal(entropy.encode_channels(columns), entropy.encode_channels(codes))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect")
def test_no_byte_outside_the_data_is_read_or_written(level: int) -> None:
    """Data and results lie at the end of readable memory: one byte more ends the process."""
    code = """
        import ctypes, mmap, sys
        import torch
        from sps2.kernels import entropy, native
        native.level = int(sys.argv[1])
        SIZE = 1 << 16
        memory = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + SIZE), mmap.PAGESIZE, 0)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        def at_end(data):
            placed = whole[SIZE - len(data):SIZE]
            return placed.copy_(data)
        torch.manual_seed(1)
        for count in (1, 16, 33, 70, 1000):
            codes = (torch.randn(3, count) * torch.tensor([[.1], [3], [400]])).to(torch.int16)
            symbols = (torch.randn(count) * 9 + 99).to(torch.uint8)
            data = entropy.encode_channels(codes)
            assert torch.equal(entropy.decode_channels(at_end(data), 3, count), codes)
            assert torch.equal(entropy.encode_bytes(at_end(symbols)), entropy.encode_bytes(symbols))
            for cut in range(0, len(data), 1 + len(data) // 300):
                torn = data[: len(data) - cut].clone()
                torn[torch.randint(len(torn) + 1, (1,)) - 1 :] = 255
                try:
                    entropy.decode_channels(at_end(torn), 3, count)
                except ValueError:
                    pass
        print("whole")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(level)]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert ran.stdout == "whole\n", ran.stderr[-2000:] or ran.returncode


def test_static_tables_are_those_of_every_version() -> None:
    """Shards of one cluster may run different builds: a table that changes needs a new format."""
    digest = 0
    for each in static():
        for number in (*each.frequencies, each.least, each.escape, each.shift):
            digest = (digest * 1_000_003 + int(number)) % (2**61 - 1)
    assert digest == 709917958875666290
