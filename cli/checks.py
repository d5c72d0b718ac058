"""The checks of `spsctl doctor`: each reports what it found and, if that is bad, what helps."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any, get_args

import psutil

from sps2.cli import key_checks, ports, render, runs
from sps2.cli.doctor_findings import Finding, Verdict
from sps2.cli.effective import require_fit
from sps2.common import machine, models, places
from sps2.common.config import Cluster, is_loopback
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import Role
from sps2.common.transport import BackendName
from sps2.common.transport.encryption import decide

GIB = 1 << 30


def run_all(cluster: Cluster) -> Iterator[Finding]:
    """Run all checks, in an order in which the first broken one is likely the cause."""
    yield _system()
    yield _python()
    yield _packages()
    yield _torch()
    yield _gpu(cluster)
    yield _kernels()
    yield _processor(cluster)
    yield _memory(cluster)
    yield _disk()
    yield from _data_plane(cluster)
    yield _ports(cluster)
    yield from key_checks.run_all(cluster)
    yield _model(cluster)


def _system() -> Finding:
    detail = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if untested := machine.untested():
        return Finding("system", "warning", f"{detail}: {untested}")
    return Finding("system", "ok", detail)


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Finding:
    missing = []
    for requirement in metadata.requires("sps2") or ():
        name = requirement.split(";")[0].strip()
        package = name.split(">")[0].split("=")[0].split("~")[0].strip()
        if ";" in requirement:  # extras and other platforms
            continue
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "broken", f"missing {', '.join(missing)}; install sps2 again")
    return Finding("packages", "ok", f"sps2 {metadata.version('sps2')} and all it needs")


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways
        return Finding("torch", "broken", f"cannot be imported: {error}")
    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU"
    return Finding("torch", "ok", f"{torch.__version__}, {cuda}")


def _gpu(cluster: Cluster) -> Finding:
    try:
        import torch

        from sps2.kernels.gpu import missing
    except Exception:  # the check before reports what is broken
        return Finding("gpu", "warning", "cannot be looked for without torch")
    if why := missing():
        if cluster.device == "cuda":
            return Finding("gpu", "broken", f"device is cuda, and {why}; take cpu or auto")
        return Finding("gpu", "ok", f"{why}; shards compute on the CPU")
    use = "shards use the CPU (--device cuda)" if cluster.device == "cpu" else "shards use it"
    names = [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]
    return Finding("gpu", "ok", f"{', '.join(names)}; {use}")


def _kernels() -> Finding:
    slower = "torch does their work, slower"
    try:
        from sps2.kernels import native
    except ImportError:
        return Finding("kernels", "warning", "cannot be looked for without torch")
    except (OSError, AttributeError) as error:
        return Finding("kernels", "broken", f"cannot be loaded: {error}; install sps2 again")
    if native.level:
        return Finding("kernels", "ok", f"C++ with {native.LEVELS[native.level]}")
    if native.unfit:
        advice = f"{slower}: install sps2 again (`touch setup.py && make setup` in its sources)"
        return Finding("kernels", "warning", f"{native.unfit}; {advice}")
    if not native.built:
        why = f" ({reason})" if (reason := native.unbuilt()) else ""
        detail = f"the C++ ones were not built{why}; {slower}: install g++, then sps2 again"
        return Finding("kernels", "warning", detail)
    if {"avx2", "asimd"} & machine.cpu_flags():
        detail = f"the C++ ones were built by another compiler than g++; {slower}"
        return Finding("kernels", "warning", f"{detail}: install sps2 again with CXX=g++")
    detail = f"the C++ ones are for x86-64 with AVX2 and 64-bit ARM; {slower}"
    return Finding("kernels", "ok", detail)


def _processor(cluster: Cluster) -> Finding:
    flags = machine.cpu_flags()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd")
    found = [flag for flag in wanted if flag in flags]
    count = machine.cores()
    detail = (
        f"{render.counted(count, 'core')}, "
        f"{render.counted(cluster.shard_threads, 'compute thread')} per shard; "
        f"{' '.join(found) or 'no vector features known here'}"
    )
    native = {"avx512_bf16", "amx_bf16", "bf16"} & flags
    if not native:
        detail += "; bfloat16 is emulated, float32 may be faster (--dtype float32)"
    shards = max(cluster.shards_of(role) for role in get_args(Role))
    if shards * cluster.shard_threads > count:
        sharing = f"{shards} shards of a kind share" if shards > 1 else "a shard has"
        there = render.counted(count, "core")
        return Finding("processor", "warning", f"{detail}; {sharing} {there}")
    return Finding("processor", "ok", detail)


def _memory(cluster: Cluster) -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{render.size(memory.available)} free of {render.size(memory.total)}"
    shards = sum(cluster.shards_of(role) for role in get_args(Role))
    try:
        weights = sum(
            path.stat().st_size for path in models.weight_files(models.locate(cluster.model))
        )
    except ServiceError:
        weights = 0
    needed = weights + shards * GIB // 2
    if memory.available < needed:
        wanted = f"{render.counted(shards, 'shard')} may need about {render.size(needed)}"
        return Finding("memory", "warning", f"{detail}; {wanted}")
    return Finding("memory", "ok", detail)


def _disk() -> Finding:
    free = {}
    for place in (places.cache(), places.state()):
        try:
            place.mkdir(parents=True, exist_ok=True)
            free[place] = shutil.disk_usage(place).free
            probe = place / ".doctor"
            probe.touch()
            probe.unlink()
        except OSError as error:
            return Finding("disk", "broken", f"{place} cannot be written: {error.strerror}")
    least = min(free, key=free.__getitem__)
    detail = f"{render.size(free[least])} free at {least}"
    if free[least] < GIB:
        return Finding("disk", "warning", f"{detail}: little for models and logs")
    return Finding("disk", "ok", detail)


def _data_plane(cluster: Cluster) -> Iterator[Finding]:
    for backend in ("ucx", "tcp"):
        answer = _loopback(backend)
        needed = backend in ("tcp", cluster.transport)
        if "error" in answer:
            verdict: Verdict = "broken" if needed else "warning"
            yield Finding(f"data plane, {backend}", verdict, answer["error"])
        else:
            version = f"ucxx {_version('ucxx-cu12')}, " if backend == "ucx" else ""
            detail = f"{version}loop-back check passed at {answer['gb_per_s']:.1f} GB/s"
            yield Finding(f"data plane, {backend}", "ok", detail)
    answer = _loopback("auto")
    if "error" in answer:
        yield Finding("data plane, auto", "broken", answer["error"])
    else:
        chosen, reason = answer["backend"], answer["reason"]
        detail = f"takes {chosen}: {reason.removeprefix(f'{chosen}, since ')}"
        yield Finding("data plane, auto", "ok", detail)
        yield _links(cluster, chosen if cluster.transport == "auto" else cluster.transport)


def _links(cluster: Cluster, backend: BackendName) -> Finding:
    if cluster.encryption == "on":
        backend = "tcp"
    try:
        key, reason = decide(cluster, cluster.host, backend)
    except Invalid as error:
        return Finding("links", "broken", str(error))
    exposed = not is_loopback(cluster.host) and (key is None or backend == "ucx")
    return Finding("links", "warning" if exposed else "ok", reason)


def _loopback(backend: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sps2.cli.loopback", backend],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": "the check did not end within 60 s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {"error": f"the check failed: {last}"}
    return answer


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _ports(cluster: Cluster) -> Finding:
    numbers = ", ".join(str(use.port) for use in ports.uses(cluster))
    folder = runs.RunFolder(cluster.name)
    if folder.is_up() and ports.uses(folder.cluster()) == ports.uses(cluster):
        return Finding("ports", "ok", f"{numbers} are used by cluster '{cluster.name}', now up")
    try:
        ports.require_free(cluster)
    except Invalid as error:
        return Finding("ports", "warning", str(error))
    return Finding("ports", "ok", f"{numbers} are free")


def _model(cluster: Cluster) -> Finding:
    try:
        folder = models.locate(cluster.model)
    except Invalid as error:
        return Finding("model", "warning", str(error))
    try:
        models.validate(folder)
        require_fit(cluster, folder)
    except Invalid as error:
        return Finding("model", "broken", str(error))
    return Finding("model", "ok", f"{cluster.model} in {folder}")
