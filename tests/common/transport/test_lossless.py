"""What is packed on its way, when that pays, and that damage is noticed."""

import pytest
import torch

from sps2.common.errors import Invalid
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like
from sps2.kernels import native

KV = Like(torch.bfloat16, (None, 4, 64))


def test_only_bfloat16_of_some_size_is_packed() -> None:
    large, small = torch.randn(64, 4, 64).bfloat16(), torch.randn(2, 4, 64).bfloat16()
    other = torch.randn(64, 4)
    packed = lossless.pack((large, small, other))
    assert packed[0].dtype == torch.uint8
    assert packed[0].nbytes < 0.72 * large.nbytes
    assert packed[1] is small
    assert packed[2] is other
    assert lossless.are_packed(packed)
    assert not lossless.are_packed((small, other))
    back = lossless.unpack(packed, (KV, KV, Like(torch.float32, (None, 4))))
    assert all(map(torch.equal, back, (large, small, other)))


def test_bytes_that_are_wanted_stay_bytes() -> None:
    packed = lossless.pack((torch.randn(64, 4, 64).bfloat16(),))
    assert lossless.unpack(packed, (Like(torch.uint8, (None,)),))[0] is packed[0]
    assert lossless.unpack(packed, (KV, KV)) == packed  # for `check` to refuse


def test_damage_is_invalid() -> None:
    (packed,) = lossless.pack((torch.randn(64, 4, 64).bfloat16(),))
    with pytest.raises(Invalid, match="damaged"):
        lossless.unpack((packed[:-2],), (KV,))


def test_packing_pays_on_links_slower_than_the_coder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "built", True)
    monkeypatch.setattr(lossless, "coder_gbit", lambda: 4.0)
    assert lossless.pays(0.0)
    assert lossless.pays(0.5)
    assert not lossless.pays(0.7)
    monkeypatch.setattr(native, "built", False)
    assert not lossless.pays(0.0)


@pytest.mark.skipif(not native.built, reason="there are no C++ kernels")
def test_the_coder_is_measured_once() -> None:
    lossless.coder_gbit.cache_clear()
    rate = lossless.coder_gbit()
    assert rate > 0
    assert lossless.coder_gbit() == rate
