"""The Kubernetes manifests, as `kubectl` puts them together, against the published schemas."""

import importlib.util
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.messages import Role

FOLDER = Path(__file__).parents[2] / "compose" / "kubernetes"
VERSION = "1.33"
SHARDS: dict[str, Role] = {
    "sps2-prefill": "prefill",
    "sps2-decode": "decode",
    "sps2-mixed": "mixed",
}
"""The roles of StatefulSets."""
OVERLAYS = ["cpu", "gpu", "rdma", "tp", "mixed"]
ON_GPUS = {"gpu", "rdma", "tp"}

Manifest = dict[str, Any]


@cache
def rendered(folder: Path) -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no `kubectl` here, which has kustomize")
    argv = ["kubectl", "kustomize", str(folder)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [each for each in yaml.safe_load_all(text) if each]


def of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    manifests = rendered(FOLDER / "overlays" / overlay)
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] in kinds}


def pods(overlay: str) -> dict[str, Manifest]:
    controllers = of_kind(overlay, "Deployment", "StatefulSet")
    return {name: each["spec"]["template"]["spec"] for name, each in controllers.items()}


def cluster_of(overlay: str, folder: Path) -> Cluster:
    (generated,) = of_kind(overlay, "ConfigMap").values()
    path = folder / "cluster.toml"
    path.write_text(generated["data"]["cluster.toml"])
    return config.load(path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schema_holds(overlay: str) -> None:
    for each in rendered(FOLDER / "overlays" / overlay):
        kubernetes_validate.validate(each, VERSION, strict=True)
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "sps2"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_whole(overlay: str) -> None:
    shards = {"sps2-mixed"} if overlay == "mixed" else {"sps2-prefill", "sps2-decode"}
    assert of_kind(overlay, "StatefulSet").keys() == shards
    control = {"sps2-gateway", "sps2-scheduler", "sps2-kvdir"}
    assert of_kind(overlay, "Deployment").keys() == control
    assert of_kind(overlay, "Service").keys() == control | shards
    assert of_kind(overlay, "PodDisruptionBudget").keys() == shards
    image = "sps2:cuda" if overlay in ON_GPUS else "sps2:cpu"
    for name, pod in pods(overlay).items():
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["image"] == image
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        on_gpu = overlay in ON_GPUS and name in shards
        assert ("nvidia.com/gpu" in limits) == on_gpu
        assert ("rdma/hca" in limits) == (overlay == "rdma" and name in shards)
        assert bool(pod.get("tolerations")) == on_gpu
        assert on_gpu == any(
            mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"]
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    """What Pod Security asks of "restricted", which the namespace enforces, and more."""
    (namespace,) = of_kind(overlay, "Namespace").values()
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(overlay).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        allowed = {"name", "emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        assert all(volume.keys() <= allowed for volume in pod["volumes"])
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {mount["name"] for mount in mounts.values()} <= volumes
            assert mounts.keys() >= {"/tmp", "/var/lib/sps2"}, "what is written to"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_probed_and_limited(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        (container,) = pod["containers"]
        module = container["command"][2]
        assert importlib.util.find_spec(module)
        if role := SHARDS.get(name):
            assert container["command"][2:] == ["sps2.services.ranks", role]
            assert importlib.util.find_spec(f"sps2.services.{role}")
        else:
            assert module == f"sps2.services.{name.removeprefix('sps2-')}"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            # none by HTTP, which TLS at the gateway would turn into HTTPS
            argv = " ".join(container[probe]["exec"]["command"])
            assert f"sps2.services.health {role or name.removeprefix('sps2-')}" in argv
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateway_is_drained_before_it_is_stopped(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop")
        assert bool(hook) == (name == "sps2-gateway")
        if hook:
            argv = hook["exec"]["command"]
            assert argv[:3] == ["python", "-m", "sps2.services.health"]
            seconds = float(argv[argv.index("--drain") + 1])
            assert pod["terminationGracePeriodSeconds"] >= seconds + 20


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_model_is_pulled_once(overlay: str) -> None:
    """Into a volume of all pods that read it; the directory reads none."""
    (claim,) = of_kind(overlay, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in pods(overlay).items():
        claims = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
        if name == "sps2-kvdir":
            assert not claims
            assert "initContainers" not in pod
            continue
        assert [each["persistentVolumeClaim"]["claimName"] for each in claims] == ["sps2-models"]
        (init,) = pod["initContainers"]
        assert init["command"] == [
            *("spsctl", "pull", "--config"),
            "/etc/sps2/cluster/cluster.toml",
        ]
        (token,) = init["env"]
        assert token["name"] == "HF_TOKEN"
        assert token["valueFrom"]["secretKeyRef"]["optional"]
        for container in (init, *pod["containers"]):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert "/var/lib/sps2/models" in paths


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_http_is_open(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy")
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in policies.values())
    part = {"app.kubernetes.io/part-of": "sps2"}
    internal = policies.pop("sps2-internal")["spec"]
    assert internal["podSelector"] == {"matchLabels": part}
    assert internal["ingress"] == [{"from": [{"podSelector": {"matchLabels": part}}]}]
    for each in of_kind(overlay, "Deployment", "StatefulSet").values():
        assert each["spec"]["template"]["metadata"]["labels"].items() >= part.items()
    opened = [
        (name, rule["ports"])
        for name, policy in policies.items()
        for rule in policy["spec"]["ingress"]
        if "from" not in rule
    ]
    assert opened == [("sps2-http", [{"port": "http"}])]
    selector = policies["sps2-http"]["spec"]["podSelector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/name": "sps2-gateway"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_fits(overlay: str, tmp_path: Path) -> None:
    cluster, services = cluster_of(overlay, tmp_path), of_kind(overlay, "Service")
    (generated,) = of_kind(overlay, "ConfigMap")
    for pod in pods(overlay).values():
        names = [each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each]
        assert names == [generated]
    assert cluster.device == "auto"
    assert cluster.shard_port
    assert cluster.bus.keys
    assert cluster.tp == (2 if overlay == "tp" else 1)
    for name, each in of_kind(overlay, "StatefulSet").items():
        role = SHARDS[name]
        assert each["spec"]["replicas"] == cluster.shards_of(role)
        resources = each["spec"]["template"]["spec"]["containers"][0]["resources"]
        processes = cluster.tp_of(role)
        assert int(resources["requests"]["cpu"]) == processes * cluster.threads
        assert int(resources["limits"].get("nvidia.com/gpu", processes)) == processes
        # ports differ from pod to pod: a Service could name none
        assert services[name]["spec"]["clusterIP"] == "None"
        assert "ports" not in services[name]["spec"]

    def ports(service: str) -> set[int]:
        found = services[cluster.host_of(service)]["spec"]["ports"]
        return {port["port"] for port in found}

    telemetry = cluster.telemetry
    assert ports("gateway") == {cluster.gateway.port, cluster.gateway.bus_port}
    assert ports("kvdir") == {cluster.kvdir.bus_port}
    assert ports("scheduler") == {
        cluster.scheduler.bus_port,
        telemetry.publish_port,
        telemetry.subscribe_port,
    }


@pytest.mark.parametrize("component", ["model-per-pod", "service-monitor", "gpu", "rdma"])
@pytest.mark.parametrize("shards", ["separate", "mixed"])
def test_components_fit(component: str, shards: str, tmp_path: Path) -> None:
    """What no overlay uses is put on an overlay of its own."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    overlay = folder / "overlays" / "own"
    overlay.mkdir()
    parts = [f"../../shards/{shards}", "../../base"]
    text = {
        "namespace": "sps2",
        "resources": parts,
        "components": [f"../../components/{component}"],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(text))
    for each in rendered(overlay):
        if each["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(each, VERSION, strict=True)
        if component == "model-per-pod":
            assert each["kind"] != "PersistentVolumeClaim"
            pod = each.get("spec", {}).get("template", {}).get("spec", {})
            for volume in pod.get("volumes", []):
                assert ("ephemeral" in volume) == (volume["name"] == "models")
                assert "persistentVolumeClaim" not in volume
