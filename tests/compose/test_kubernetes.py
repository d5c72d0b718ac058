"""The Kubernetes manifests: against the published schemas, alone and put together."""

import importlib.util
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sps2.common import config

FOLDER = Path(__file__).parents[2] / "compose" / "kubernetes"
BASE = FOLDER / "base"
VERSION = "1.33"


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def manifests() -> list[dict[str, Any]]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [each for name in listed for each in documents((BASE / name).read_text())]


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (each["metadata"]["name"], each["spec"]["template"]["spec"])
        for each in manifests()
        if each["kind"] in ("Deployment", "StatefulSet")
    ]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda each: each["metadata"]["name"])
def test_the_schema_holds(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_are_whole(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no `kubectl` here, which has kustomize")
    argv = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    built = documents(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    kinds = Counter(each["kind"] for each in built)
    assert [kinds[kind] for kind in ("Deployment", "StatefulSet", "Service")] == [3, 2, 5]
    for each in built:
        kubernetes_validate.validate(each, VERSION, strict=True)
        if each["kind"] == "StatefulSet":
            container = each["spec"]["template"]["spec"]["containers"][0]
            assert container["image"] == {"cpu": "sps2:cpu", "gpu": "sps2:cuda"}[overlay]
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")


@pytest.mark.parametrize(("name", "pod"), pods())
def test_pods_are_probed_limited_and_not_root(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    (container,) = pod["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"]["memory"]
    module = container["command"][2]
    assert importlib.util.find_spec(module)
    assert module.rpartition(".")[2] == name.removeprefix("sps2-")


def test_the_configuration_fits() -> None:
    cluster = config.load(BASE / "cluster.toml")
    found = {each["metadata"]["name"]: each for each in manifests() if each["kind"] == "Service"}
    sets = {each["metadata"]["name"]: each for each in manifests() if each["kind"] == "StatefulSet"}
    assert sets["sps2-prefill"]["spec"]["replicas"] == cluster.prefill
    assert sets["sps2-decode"]["spec"]["replicas"] == cluster.decode
    for service in ("gateway", "scheduler", "kvdir"):
        assert cluster.host_of(service) in found

    def ports(service: str) -> set[int]:
        return {port["port"] for port in found[cluster.host_of(service)]["spec"]["ports"]}

    assert ports("gateway") == {cluster.gateway.port, cluster.gateway.bus_port}
    assert ports("kvdir") == {cluster.kvdir.bus_port}
    telemetry = cluster.telemetry
    assert ports("scheduler") == {
        cluster.scheduler.bus_port,
        telemetry.publish_port,
        telemetry.subscribe_port,
    }
