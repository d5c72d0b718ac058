import contextlib

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.errors import Invalid
from sps2.common.transport import frame as frames
from sps2.common.transport.frame import Frame, Part, frame_for


def test_header_round_trip() -> None:
    tensors = (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(0, 4), torch.tensor(1))
    frame = frame_for("kv", ("a", "b"), (0, 3), 7, 42, tensors)
    assert frames.decode(frames.encode(frame)) == frame
    assert frame.nbytes == 12 + 0 + 8
    assert [(t.dtype, t.shape) for t in frames.allocate(frame)] == [
        (t.dtype, t.shape) for t in tensors
    ]


@given(st.binary(max_size=200))
def test_garbage_is_invalid_or_a_frame(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        assert isinstance(frames.decode(data), Frame)


@pytest.mark.parametrize(
    "bad",
    [
        Frame("kv", ("a",), (), 0, 0, ()),
        Frame("kv", ("a",), (0,), 0, 0, (Part("int8", (frames.MAX_PAYLOAD_BYTES + 1,)),)),
        Frame("kv", ("a",), (0,), 0, 0, (Part("int8", (-1,)),)),
        Frame("kv", ("a",), (0,), 0, 0, (Part("int8", (1,) * 9),)),
        Frame("kv", ("a",), (0,), 0, 0, (Part("int8", (1 << 63, 0)),)),
        Frame("kv", ("a",), (0,), 0, 1 << 63, ()),
        Frame("kv", ("a",), (0,), -1, 0, ()),
        Frame("other", ("a",), (0,), 0, 0, ()),  # type: ignore[arg-type]
    ],
)
def test_bad_headers_are_refused(bad: Frame) -> None:
    with pytest.raises(Invalid):
        frames.decode(msgspec.msgpack.encode(bad))


def test_header_too_long() -> None:
    with pytest.raises(Invalid, match="over"):
        frames.encode(Frame("q", ("x" * 9000,), (0,), 0, 0, ()))


def test_tensors_too_large_for_a_frame() -> None:
    huge = torch.ones(1).expand((1 << 30) + 1)  # over 4 GiB by its shape, and no memory
    with pytest.raises(Invalid, match="is over 4294967296: split the prompt"):
        frames.encode(frame_for("kv", ("r",), (0,), 0, 0, (huge,)))


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32, 0), (1 << 32, 1 << 32, 1 << 32, 0)])
def test_sizes_that_no_tensor_has(shape: tuple[int, ...]) -> None:
    with contextlib.suppress(Invalid):
        frames.allocate(Frame("kv", ("r",), (0,), 0, 0, (Part("int8", shape),)))


def test_bytes_are_the_tensors_own() -> None:
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    frames.as_bytes(tensor)[:] = b"\x80\x3f" * 4
    assert tensor.tolist() == [1.0] * 4
    assert len(frames.as_bytes(torch.zeros(0, 3))) == 0


def test_only_contiguous_tensors_are_sent() -> None:
    with pytest.raises(Invalid, match="contiguous"):
        frames.as_bytes(torch.zeros(3, 4).T)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.ones(2, 0),
        torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        torch.arange(12.0).view(4, 3).t()[:, :1],
        torch.ones(3, requires_grad=True),
    ],
    ids=["scalar", "empty", "bfloat16", "one column", "needs a gradient"],
)
def test_the_bytes_of_a_tensor_are_its_own_memory(tensor: torch.Tensor) -> None:
    tensor = tensor if tensor.is_contiguous() else tensor.contiguous()
    view = frames.as_bytes(tensor)
    assert (view.ndim, view.nbytes) == (1, tensor.nbytes)
    view[:] = bytes(tensor.nbytes)
    assert not tensor.any()


def test_a_tensor_that_no_frame_carries_is_refused() -> None:
    with pytest.raises(Invalid, match="float64"):
        frames.frame_for("kv", (), (), 0, 0, (torch.ones(1, dtype=torch.float64),))


def test_a_header_that_nests_too_deeply_is_refused() -> None:
    """Further fields are passed over, however deep."""
    plain = msgspec.msgpack.encode(Frame("kv", ("a",), (0,), 0, 0, ()))
    with pytest.raises(Invalid, match="malformed"):
        frames.decode(bytes([0x98]) + plain[1:] + b"\x91" * 5000 + b"\xc0")
