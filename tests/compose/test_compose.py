"""The compose files: against the published schema, and against what they name.

Where `docker compose` is there, it puts the files together too.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from dockerfile_parse import DockerfileParser

from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.messages import Role
from sps2.services import ranks

FOLDER = Path(__file__).parents[2] / "compose"
ONE, HOSTS, MIXED, GPU, RDMA = (
    f"docker-compose{kind}.yml" for kind in ("", ".hosts", ".mixed", ".gpu", ".rdma")
)
ELSEWHERE = {"prometheus", "grafana"}
"""Images of others."""
STAGES = {"mixed-0.1"}
"""Of pipelines, which compute on CPUs."""
TOGETHER = [
    (ONE,),
    (ONE, GPU),
    (ONE, MIXED),
    (ONE, MIXED, GPU),
    (HOSTS,),
    (HOSTS, GPU),
    (HOSTS, RDMA),
    (HOSTS, GPU, RDMA),
]
PLUGIN = [["docker", "compose"], ["docker-compose"]]


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
        if known.get(name):
            return known[name]
        assert kind == ":-", f"{name} has no value: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def cluster_of(name: str, folder: Path, **known: str) -> Cluster:
    """The configuration that a file gives its services."""
    path = folder / "cluster.toml"
    path.write_text(filled(load(name)["configs"]["cluster"]["content"], known))
    return config.load(path)


def shards_of(name: str) -> dict[str, Any]:
    """The services of a file that are shards."""
    return {
        service: stated
        for service, stated in load(name)["services"].items()
        if service.partition("-")[0] in get_args(Role)
    }


@pytest.mark.parametrize("name", [ONE, HOSTS, MIXED, GPU, RDMA])
def test_the_schema_holds(name: str) -> None:
    jsonschema.validate(load(name), get_builtin_schema("vendor.compose-spec"))


@pytest.mark.parametrize("name", [ONE, HOSTS])
def test_services_name_what_there_is(name: str) -> None:
    file = load(name)
    services = file["services"]
    for service, stated in services.items():
        for other in stated.get("depends_on", {}):
            assert other in services
        for volume in stated.get("volumes", []):
            source = volume.split(":")[0]
            assert source in file["volumes"] or source[:2] in ("./", "${")
        for used in stated.get("configs", []):
            assert used["source"] in file["configs"]
        assert set(stated.get("secrets", [])) <= file.get("secrets", {}).keys()
        if service == "setup":
            continue
        assert "healthcheck" in stated, service
        assert stated["restart"] == "unless-stopped"
        if service in ELSEWHERE:
            continue
        role, _, place = service.partition("-")
        index, _, stage = place.partition(".")
        command = stated["command"]
        assert importlib.util.find_spec(f"sps2.services.{role}")
        assert command[2:4] == (
            ["sps2.services.ranks", role] if index else [f"sps2.services.{role}", "--config"]
        )
        assert not index or command[command.index("--index") + 1] == index
        assert not stage or command[command.index("--rank") + 1] == stage
        probe = stated["healthcheck"]["test"]
        assert importlib.util.find_spec(probe[3])
        assert probe[4] == service
        assert stated["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", [ONE, HOSTS])
def test_the_model_that_is_pulled_is_the_one_that_is_served(name: str, tmp_path: Path) -> None:
    told = variables() | {"SPS2_MODEL": "hf:some/model"}
    assert cluster_of(name, tmp_path, **told).model == "hf:some/model"
    setup = load(name)["services"]["setup"]
    command = " ".join(setup["command"])
    (target,) = [each["target"] for each in setup["configs"]]
    assert f"spsctl pull --config {target}" in command
    assert "SPS2_MODEL" not in command
    assert setup["environment"]["HF_TOKEN"] == "${HF_TOKEN:-}"


def test_the_configuration_of_one_host(tmp_path: Path) -> None:
    cluster = cluster_of(ONE, tmp_path)
    services = load(ONE)["services"]
    assert {cluster.host_of(name) for name in ("gateway", "scheduler", "kvdir")} <= services.keys()
    shards = {name for name, stated in shards_of(ONE).items() if "profiles" not in stated}
    assert shards == set(cluster.shard_names())
    assert all(services[name]["hostname"] == name for name in shards)
    assert cluster.bus.keys
    assert cluster.shard_port


def test_the_configuration_of_several_hosts(tmp_path: Path) -> None:
    known = variables()
    cluster = cluster_of(HOSTS, tmp_path, **known)
    assert cluster.host == known["SPS2_CONTROL"]
    services = yaml.safe_load(filled(yaml.safe_dump(load(HOSTS)["services"]), known))
    names = {"prefill": "PREFILL", "decode": "DECODE", "mixed": "MIXED"}
    for role, count in (("prefill", cluster.prefill), ("decode", cluster.decode), ("mixed", 4)):
        for index in range(count):
            command = services[f"{role}-{index}"]["command"]
            assert command[-1] == known[f"SPS2_{names[role]}_{index}"]
            assert services[f"{role}-{index}"]["profiles"] == [f"{role}-{index}"]
            assert f"{role}-{index}" in services["setup"]["profiles"]


def test_mixed_shards_on_one_host(tmp_path: Path) -> None:
    """The override takes the others out, and brings as many in as its configuration says."""
    cluster, override = cluster_of(MIXED, tmp_path), load(MIXED)["services"]
    mixed = {name for name, stated in shards_of(ONE).items() if stated.get("profiles") == ["mixed"]}
    assert mixed == set(cluster.shard_names())
    absent = {name for name, stated in override.items() if stated == {"profiles": ["separate"]}}
    assert absent == shards_of(ONE).keys() - mixed
    alike = cluster_of(ONE, tmp_path)
    for key in ("model", "device", "shard_port", "gateway", "scheduler", "kvdir", "bus"):
        assert getattr(cluster, key) == getattr(alike, key)


def test_mixed_shards_on_several_hosts(tmp_path: Path) -> None:
    counts = {"SPS2_PREFILL": "0", "SPS2_DECODE": "0", "SPS2_MIXED": "4"}
    cluster = cluster_of(HOSTS, tmp_path, **variables() | counts)
    assert set(cluster.shard_names()) < shards_of(HOSTS).keys()


def test_a_pipeline_on_two_hosts(tmp_path: Path) -> None:
    counts = {"SPS2_PREFILL": "0", "SPS2_DECODE": "0", "SPS2_MIXED": "1"}
    counts |= {"SPS2_PP": "2", "SPS2_DEVICE": "cpu"}
    known = variables() | counts
    cluster = cluster_of(HOSTS, tmp_path, **known)
    services = yaml.safe_load(filled(yaml.safe_dump(load(HOSTS)["services"]), known))
    for stage, name in enumerate(cluster.shard_names()):
        command = services[name]["command"]
        assert command[-3:] == [name, "--host", known[f"SPS2_{re.sub('[-.]', '_', name).upper()}"]]
        (only,) = ranks.commands(cluster, "mixed", None, 0, None, name, stage)
        told = ["--here", name, *(["--rank", "1"] if stage else [])]
        assert only[-len(told) :] == told
        assert services[name]["profiles"] == [name]
        assert name in services["setup"]["profiles"]


@pytest.mark.parametrize("name", [ONE, HOSTS])
def test_tensor_parallel_shards_have_all_their_processes(name: str, tmp_path: Path) -> None:
    told = variables() | {"SPS2_TP": "2", "SPS2_DECODE_TP": "4"}
    cluster = cluster_of(name, tmp_path, **told)
    assert [len(ranks.commands(cluster, "prefill", None, 1, None, None))] == [2]
    assert [len(ranks.commands(cluster, "decode", None, 1, None, None))] == [4]


@pytest.mark.parametrize("name", [ONE, HOSTS])
def test_gpus_are_used(name: str, tmp_path: Path) -> None:
    """All services are of the CUDA image, `setup` too; shards have GPUs, and compute on them."""
    assert cluster_of(name, tmp_path, **variables()).device == "auto"
    override = load(GPU)["services"]
    assert override.keys() == load(name)["services"].keys() - ELSEWHERE - STAGES
    for service, stated in override.items():
        assert stated["image"] == "${SPS2_GPU_IMAGE:-sps2:cuda}", service
        assert stated["build"]["dockerfile"] == "compose/Dockerfile.cuda", service
        assert ("deploy" in stated) == (service in shards_of(name)), service
    assert "infiniband" not in (FOLDER / GPU).read_text()


def test_rdma_is_a_file_of_its_own() -> None:
    for service, stated in load(RDMA)["services"].items():
        assert service in shards_of(HOSTS)
        assert stated == {"devices": ["/dev/infiniband:/dev/infiniband"]}
    assert load(RDMA)["services"].keys() == shards_of(HOSTS).keys()
    assert all(stated["ulimits"]["memlock"] == -1 for stated in shards_of(HOSTS).values())


@pytest.mark.parametrize("files", TOGETHER, ids="+".join)
def test_docker_compose_puts_them_together(files: tuple[str, ...]) -> None:
    plugin = next((argv for argv in PLUGIN if _works(argv)), None)
    if plugin is None:
        pytest.skip("there is no `docker compose` here, which is version 2")
    argv = [*plugin, "--env-file", "hosts.env", *(word for name in files for word in ("-f", name))]
    profiles = [
        f"--profile={name}"
        for name in ("control", "mixed", *shards_of(HOSTS))
        if name not in STAGES
    ]
    done = subprocess.run(
        [*argv, *profiles, "config"], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    image = "sps2:cuda" if GPU in files else "sps2:cpu"
    assert {stated["image"] for stated in services.values()} == {image}
    roles = {name.partition("-")[0] for name in services}
    assert roles >= {"setup", "gateway", "scheduler", "kvdir", "mixed"}
    assert ("prefill" in roles) == (MIXED not in files)


def _works(argv: list[str]) -> bool:
    if shutil.which(argv[0]) is None:
        return False
    done = subprocess.run([*argv, "version", "--short"], capture_output=True, text=True)
    return not done.returncode and not done.stdout.startswith("1.")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_do_not_run_as_root_and_tell_their_health(name: str) -> None:
    stages = (FOLDER / name).read_text().split("\nFROM ")
    assert len(stages) == 3, "built in one stage, run in another"
    last = stages[-1]
    assert re.search(r"^USER 10001", last, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*CMD", last, re.MULTILINE)
    assert "COPY --from=build" in last
    assert "g++" not in last


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_are_built_of_what_there_is(name: str, tmp_path: Path) -> None:
    """Every release is pinned, and what is copied is in the tree."""
    copy = tmp_path / "Dockerfile"
    shutil.copy(FOLDER / name, copy)
    steps = DockerfileParser(str(copy)).structure
    for step in steps:
        words = [word for word in step["value"].split() if not word.startswith("--")]
        if step["instruction"] == "COPY" and "--from" not in step["value"]:
            assert all((FOLDER.parent / source).exists() for source in words[:-1]), step["value"]
        if "pip install" in step["value"]:
            assert " -c /src/" in step["value"]
    (command,) = [step["value"] for step in steps if step["instruction"] == "CMD"]
    assert command == '["sps2-serve"]'


def test_the_cuda_image_has_one_cuda() -> None:
    """Torch brings its own, and ucxx another: pip refuses two."""
    lines = (FOLDER / "constraints-cuda.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert {"torch", "triton", "ucxx-cu12"} <= pinned
    assert not [name for name in pinned if name.endswith("-cu13") or name == "cuda-toolkit"]
