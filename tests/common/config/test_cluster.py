"""Configuration files: what is in force, and what is said of a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from sps2.common import config
from sps2.common.errors import Invalid

TABLES = ["gateway", "scheduler", "sharing", "kvdir", "telemetry", "tracing", "bus", "kv"]
FLAGS: list[dict[str, Any]] = [{}, {"port": 9000}, {"keys": "/keys"}]


def loaded(folder: Path, text: str, **flags: Any) -> config.Cluster:
    path = folder / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("value", ["1", "true", "''", "[]", "[{port = 1}]"])
@pytest.mark.parametrize("table", TABLES)
def test_what_should_be_a_table_is_named(
    tmp_path: Path, table: str, value: str, flags: dict[str, Any]
) -> None:
    with pytest.raises(Invalid, match=rf"cluster\.toml.*{table}"):
        loaded(tmp_path, f"{table} = {value}", **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mixed = 'two'", "mixed"),
        ("mixed = [2]", "mixed"),
        ("meeting_port = 'x'", "meeting_port"),
        ("[scheduler]\nbus_port = {}", "scheduler.bus_port"),
        ("[bus]\nheartbeat_s = nan", "bus.heartbeat_s"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(
    tmp_path: Path, text: str, key: str, flags: dict[str, Any]
) -> None:
    with pytest.raises(Invalid, match=key.replace(".", r"\.")):
        loaded(tmp_path, text, **flags)


def test_a_port_of_a_wrong_type_is_named_or_replaced_by_the_flag(tmp_path: Path) -> None:
    text = "[gateway]\nport = []"
    with pytest.raises(Invalid, match=r"gateway\.port"):
        loaded(tmp_path, text)
    assert loaded(tmp_path, text, port=9000).gateway.port == 9000


def test_flags_and_file_together(tmp_path: Path) -> None:
    text = "[bus]\nheartbeat_s = 2.0\n[kvdir]\nbus_port = 7\n"
    cluster = loaded(tmp_path, text, port=9000, keys="/keys")
    assert (cluster.bus.keys, cluster.bus.heartbeat_s) == ("/keys", 2.0)
    assert (cluster.gateway.port, cluster.gateway.bus_port, cluster.kvdir.bus_port) == (
        9000,
        9001,
        7,
    )


def test_pages_on_disk_are_pages_of_the_prefix_cache(tmp_path: Path) -> None:
    text = '[kv]\ndisk_folder = "/var/cache/kv"\nprefix_cache = false\n'
    with pytest.raises(Invalid, match="`disk_folder` keeps pages of the prefix cache: set"):
        loaded(tmp_path, text)


def test_the_addresses_of_several_gateways() -> None:
    one = config.load(port=9000)
    assert one.gateway_names() == ["gateway"]
    assert one.gateway_addresses == ("tcp://127.0.0.1:9001",)
    several = config.load(port=9000, gateway={"processes": 3})
    assert several.gateway_names() == ["gateway", "gateway.1", "gateway.2"]
    ports = (9001, 9016, 9017)
    assert several.gateway_addresses == tuple(f"tcp://127.0.0.1:{port}" for port in ports)
    with pytest.raises(Invalid, match="`second_bus_port` 65535 leaves no ports for 3 gateways"):
        config.load(gateway={"processes": 3, "second_bus_port": 65535})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tp": 2}, "`pp`.*`tp`.*leave one of them out"),
        ({"decode_tp": 2}, "leave one of them out"),
        ({"device": "auto"}, "set `device` to cpu"),
        ({"kv": {"disk_folder": "/kv"}}, "leave out `disk_folder`"),
        ({"joining": {"first_port": 9000}}, "list of hosts"),
    ],
)
def test_what_pipelines_cannot_have_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        config.load(pp=2, **more)
    assert config.load(**more).pp == 1


def test_the_processes_of_pipelines_have_names_and_ports() -> None:
    cluster = config.load(pp=2, prefill=2, decode=1, shard_port=9000)
    assert cluster.shard_names() == [
        *("prefill-0", "prefill-0.1", "prefill-1", "prefill-1.1"),
        *("decode-0", "decode-0.1"),
    ]
    assert cluster.shard_ports_of("decode", 0, 1) == (9010, 9011)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "{a=" * 3000, "mixed = " + "1" * 5000], ids=len
)
def test_a_file_that_the_parser_cannot_follow_is_no_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match=r"cluster\.toml is not valid TOML"):
        loaded(tmp_path, text)
