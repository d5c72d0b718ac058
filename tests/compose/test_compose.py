"""The compose files: against the published schema, and against what they name."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from sps2.common import config

FOLDER = Path(__file__).parents[2] / "compose"
FILES = ["docker-compose.yml", "docker-compose.hosts.yml", "docker-compose.gpu.yml"]
ONCE = {"setup", "model"}
ELSEWHERE = {"prometheus", "grafana"}
"""Images of others."""


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def variables() -> dict[str, str]:
    lines = (FOLDER / "hosts.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled(text: str, known: dict[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?message}` as compose fills them in."""

    def value(match: "re.Match[str]") -> str:
        name, kind, rest = match[1], match[2], match[3]
        if name in known:
            return known[name]
        assert kind == ":-", f"{name} has no value: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


@pytest.mark.parametrize("name", FILES)
def test_the_schema_holds(name: str) -> None:
    jsonschema.validate(load(name), get_builtin_schema("vendor.compose-spec"))


@pytest.mark.parametrize("name", FILES[:2])
def test_services_name_what_there_is(name: str) -> None:
    file = load(name)
    services = file["services"]
    for service, told in services.items():
        for other in told.get("depends_on", {}):
            assert other in services
        for volume in told.get("volumes", []):
            source = volume.split(":")[0]
            assert source in file["volumes"] or source[:2] in ("./", "${")
        for used in told.get("configs", []):
            assert used["source"] in file["configs"]
        assert set(told.get("secrets", [])) <= file.get("secrets", {}).keys()
        if service in ONCE:
            continue
        assert "healthcheck" in told, service
        assert told["restart"] == "unless-stopped"
        if service in ELSEWHERE:
            continue
        module = told["command"][2]
        assert importlib.util.find_spec(module), module
        assert module == f"sps2.services.{service.partition('-')[0]}"
        index = service.partition("-")[2]
        assert not index or told["command"][told["command"].index("--index") + 1] == index
        probe = told["healthcheck"]["test"]
        assert importlib.util.find_spec(probe[3])
        assert probe[4] == service


def test_the_configuration_of_one_host(tmp_path: Path) -> None:
    cluster = config.load(FOLDER / load(FILES[0])["configs"]["cluster"]["file"])
    services = load(FILES[0])["services"]
    assert {cluster.host_of(name) for name in ("gateway", "scheduler", "kvdir")} <= services.keys()
    shards = {name for name in services if name.startswith(("prefill-", "decode-"))}
    assert len(shards) == cluster.prefill + cluster.decode
    assert all(services[name]["hostname"] == name for name in shards)
    assert cluster.bus.keys
    assert cluster.shard_port


def test_the_configuration_of_several_hosts(tmp_path: Path) -> None:
    known, file = variables(), load(FILES[1])
    path = tmp_path / "cluster.toml"
    path.write_text(filled(file["configs"]["cluster"]["content"], known))
    cluster = config.load(path)
    assert cluster.host == known["SPS2_CONTROL"]
    text = filled(yaml.safe_dump(file["services"]), known)
    services = yaml.safe_load(text)
    for role, count in (("prefill", cluster.prefill), ("decode", cluster.decode)):
        for index in range(count):
            command = services[f"{role}-{index}"]["command"]
            assert command[-1] == known[f"SPS2_{role.upper()}_{index}"]
            assert services[f"{role}-{index}"]["profiles"] == [f"{role}-{index}"]
    assert load(FILES[2])["services"].keys() <= services.keys()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_do_not_run_as_root_and_tell_their_health(name: str) -> None:
    stages = (FOLDER / name).read_text().split("\nFROM ")
    assert len(stages) == 3, "built in one stage, run in another"
    last = stages[-1]
    assert re.search(r"^USER 10001", last, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*CMD", last, re.MULTILINE)
    assert "COPY --from=build" in last
    assert "g++" not in last
