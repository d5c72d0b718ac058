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
        ("[sharing]\ngflops = 'x'", "`sharing.gflops` cannot be 'x'; there are a number, measured"),
        ("[sharing]\ngflops = 0", "`sharing.gflops` must be more than 0 ("),
        ("prefill = -1", "`prefill` must be at least 0 ("),
        ("[gateway]\nport = 'x'", "`gateway.port` must be a whole number, not text ("),
        ("prefill = 1.5", "`prefill` must be a whole number, not a number with a fraction ("),
        ("[kv]\npage_tokens = 5000", "`kv.page_tokens` must be at most 1024 ("),
        ("[bus]\nheartbeat_s = 0", "`bus.heartbeat_s` must be more than 0 ("),
        ("[kv]\nprefix_cache = 1", "`kv.prefix_cache` must be true or false, not a number ("),
        ("served_model_name = ['']", "`served_model_name` must not be empty ("),
        ("served_model_name = 'x'", "`served_model_name` must be a list, not text ("),
        ("name = 'a b'", "`name` may have letters, digits, - and _ only ("),
        ("kv = 1", "`kv` must be a table, not a number ("),
    ],
)
def test_a_wrong_key_or_value(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(Invalid) as caught:
        config.load(path)
    assert f"{path}: {said}" in str(caught.value)
    assert "`spsctl config` prints every key" in str(caught.value)
