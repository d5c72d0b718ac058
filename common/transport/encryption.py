"""Whether the links of a process are encrypted, by configuration, keys, address and backend."""

from typing import NamedTuple

from sps2.common import keys
from sps2.common.config import Cluster, is_loopback
from sps2.common.errors import Invalid
from sps2.common.keys import Key
from sps2.common.transport.backends import BackendName

UCX_IN_THE_CLEAR = (
    "UCX sends tensors in the clear: give shards a network of their own, or set "
    '`transport = "tcp"`, whose links are encrypted'
)


class Encryption(NamedTuple):
    """What a plane gets as its `key`, and in words what that protects."""

    key: Key | None
    reason: str


def decide(cluster: Cluster, host: str, backend: BackendName) -> Encryption:
    """Decide for a process whose data plane binds `host`.

    "auto" encrypts wherever the bus has keys and others can reach the address.

    Raises:
        Invalid: encryption is "on", and there are no keys, or the backend cannot encrypt.
    """
    wanted = cluster.encryption
    if wanted == "off":
        return Encryption(None, "in the clear, as configured")
    cluster.require_keys(host)
    if not cluster.bus.keys:
        return Encryption(None, "in the clear, since all is on loopback")
    if wanted == "auto" and is_loopback(host):
        return Encryption(None, "in the clear, since it is on loopback")
    key = keys.cluster_key(cluster.bus)
    if backend == "ucx":
        if wanted == "on":
            raise Invalid(f'UCX cannot encrypt, and `encryption` is "on". {UCX_IN_THE_CLEAR}')
        return Encryption(key, f"{UCX_IN_THE_CLEAR}. Handshakes are encrypted")
    return Encryption(key, "encrypted by TLS 1.3, with certificates of the cluster's key")
