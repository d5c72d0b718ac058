"""The checks of `spsctl doctor` for keys: present, intact, private, and still valid."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sps2.cli.doctor_findings import Finding
from sps2.common import keys
from sps2.common.config import Bus, Cluster
from sps2.common.errors import Invalid
from sps2.common.keys import API_KEYS
from sps2.common.keys.keyring import Keyring
from sps2.services.gateway.http.server import require_certificate


def run_all(cluster: Cluster) -> Iterator[Finding]:
    """One finding for each key file."""
    bus = cluster.bus
    if not bus.keys:
        yield _look("keys", lambda: _needless(cluster))
    else:
        own = _look("keys", lambda: _own(bus))
        ring = Keyring(keys.beside(bus, API_KEYS).parent)
        yield own
        if ring.listed.exists():
            yield _look("clients", lambda: _clients(ring))
        for path in _others(bus, ring):
            yield _look(path.name, partial(_other, ring, path))
        if ring.api.exists() or own.verdict == "ok":
            yield _look("API keys", lambda: _api_keys(ring))
    if cluster.gateway.tls_key:
        yield _look("TLS key", lambda: _certificate(cluster))


def _look(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Invalid as error:
        return Finding(check, "broken", str(error))
    except OSError as error:
        return Finding(check, "broken", f"cannot read {error.filename}: {error.strerror}")


def _needless(cluster: Cluster) -> Finding:
    for service in ("gateway", "scheduler", "kvdir"):
        cluster.require_keys(cluster.host_of(service))
    cluster.require_keys(cluster.host)
    return Finding("keys", "ok", "none are configured, nor needed: all is on loopback")


def _own(bus: Bus) -> Finding:
    key = keys.cluster_key(bus)
    assert key is not None
    return Finding("keys", "ok", f"{bus.keys} has the key of cluster {key.name}")


def _clients(ring: Keyring) -> Finding:
    names = list(ring.clients())
    return Finding("clients", "ok", f"{len(names)}: {', '.join(names)}" if names else "none")


def _others(bus: Bus, ring: Keyring) -> list[Path]:
    """Client keys that are still in the folder."""
    if not Path(bus.keys).expanduser().is_dir():
        return []
    return sorted(path for path in ring.folder.glob("*.key") if path != ring.cluster)


def _other(ring: Keyring, path: Path) -> Finding:
    try:
        key = keys.read(path)
        own = keys.read(ring.cluster)
    except Invalid as error:
        return Finding(path.name, "warning", str(error))
    if key.cluster != own.public:
        return Finding(path.name, "warning", f"is for another cluster than {own.name}")
    if key.kind == "client" and key.public not in {it.public for it in ring.clients().values()}:
        return Finding(path.name, "warning", f"client {key.name} was revoked; nobody takes it")
    return Finding(path.name, "ok", f"is the key of {key.kind} {key.name}")


def _api_keys(ring: Keyring) -> Finding:
    now = datetime.now(UTC)
    found: dict[str, list[str]] = {"valid": [], "expired": [], "revoked": []}
    for name, key in ring.api_keys().items():
        found[key.state(now)].append(name)
    parts = [f"{len(names)} {state}: {', '.join(names)}" for state, names in found.items() if names]
    detail = "; ".join(parts) or f"none in {ring.folder}"
    if not found["valid"]:
        detail += "; a gateway answers no HTTP request: `spsctl keys api add NAME` adds a key"
    good = found["valid"] and not found["expired"]
    return Finding("API keys", "ok" if good else "warning", detail)


def _certificate(cluster: Cluster) -> Finding:
    require_certificate(cluster.gateway)
    return Finding("TLS key", "ok", f"{cluster.gateway.tls_key} fits its certificate")
