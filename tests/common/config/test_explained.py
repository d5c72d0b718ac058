"""What is said of a file of settings that has a wrong key or value."""

from pathlib import Path

import pytest

from sps2.common import config
from sps2.common.errors import Invalid


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle = 'x'", "there is no key `modle`; did you mean model?"),
        ("[gatway]\nport = 1", "there is no key `gatway`; did you mean gateway?"),
        ("[gateway]\nprot = 1", "there is no key `gateway.prot`; did you mean port?"),
        ("[kvdir]\nzzz = 1", "there is no key `kvdir.zzz`; there are host, bus_port ("),
        ("port = 9000", "there is no key `port`; did you mean gateway.port?"),
        ("[gateway]\nmodel = 'x'", "there is no key `gateway.model`; did you mean model?"),
        ("attention = 'none'", "`attention` cannot be 'none'; there are balanced, exact, fast ("),
        ("[sharing]\nmethod = 'rings'", "`sharing.method` cannot be 'rings'; did you mean ring?"),
        ("prefill = -1", "`prefill`: Expected `int` >= 0"),
        ("[gateway]\nport = 'x'", "`gateway.port`: Expected `int`, got `str`"),
    ],
)
def test_a_wrong_key_or_value(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(Invalid) as caught:
        config.load(path)
    assert f"{path}: {said}" in str(caught.value)
    assert "`spsctl config` prints every key" in str(caught.value)
