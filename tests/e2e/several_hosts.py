"""Hosts on this machine: network namespaces with an SSH server each, and `spsctl` on the first."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from links_network import Network, Unavailable, inside, network

SERVER = Path(__file__).parent.parent / "ssh_server.py"
PATIENCE_S = 300


@dataclass
class Machines:
    """Hosts that ssh reaches by their names from the first of them."""

    network: Network
    folder: Path
    ssh: str

    def write_list(self, roles: Mapping[str, Mapping[str, object]]) -> Path:
        """A host list: what each host has beside its name, address and home."""
        tables = {
            name: {"name": name, "address": self.network.hosts[name].address}
            | {"home": str(self.folder / f"home-{name}")}
            | dict(has)
            for name, has in roles.items()
        }
        text = [f"ssh = {self.ssh!r}", f"python = {sys.executable!r}"]
        for table in tables.values():
            text += ["[[hosts]]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        path = self.folder / "hosts.toml"
        path.write_text("\n".join(text) + "\n")
        return path

    def spsctl(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run `spsctl` on the host that this thread is on."""
        return subprocess.run(
            [sys.executable, "-m", "sps2.cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"SPS2_HOME": str(self.folder / "home-launcher")},
        )


@contextmanager
def machines(names: Sequence[str], folder: Path) -> Iterator[Machines]:
    """Hosts while the block runs, which is on the first. Skips the test where there can be none."""
    if shutil.which("ssh") is None:
        pytest.skip("there is no `ssh` here")
    with ExitStack() as stack:
        try:
            built = stack.enter_context(network(names))
        except Unavailable as error:
            pytest.skip(f"hosts need network namespaces, which need root and iproute2: {error}")
        config = _write_keys(built, folder)
        for host in built.hosts.values():
            with inside(host):
                server = subprocess.Popen(
                    [sys.executable, str(SERVER), host.address, str(folder)],
                    stdout=subprocess.PIPE,
                )
            stack.callback(_end, server)
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
        stack.enter_context(inside(built.hosts[names[0]]))
        yield Machines(built, folder, f"ssh -F {config}")


def _write_keys(built: Network, folder: Path) -> Path:
    """Key pairs of hosts and client, and a configuration of ssh's that knows them."""
    host_key, own = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    host_key.write_private_key(str(folder / "host_key"))
    own.write_private_key(str(folder / "id"))
    own.write_public_key(str(folder / "authorized_keys"))
    (folder / "id").chmod(0o600)
    public = host_key.export_public_key().decode().strip()
    known = [f"{host.address} {public}" for host in built.hosts.values()]
    (folder / "known_hosts").write_text("\n".join(known) + "\n")
    lines = [f"IdentityFile {folder / 'id'}", f"UserKnownHostsFile {folder / 'known_hosts'}"]
    for name, host in built.hosts.items():
        lines += [f"Host {name}", f"  HostName {host.address}", "  StrictHostKeyChecking yes"]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    return folder / "ssh_config"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.communicate()


def _toml(value: Any) -> str:
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else repr(value)
