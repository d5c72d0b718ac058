"""How a machine with a code gets what it needs to be a part of the cluster."""

import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from sps2.common import keys
from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.keys import Key
from sps2.common.keys.join_code import JoinCode, fingerprint, pair_of
from sps2.common.messages import Admission, JoinCluster
from sps2.common.messages.schema import schema_hash
from sps2.services.compatibility import VERSION
from sps2.services.joining.hello import MAX_BYTES, Hello

REACH_S = 8.0
ADMIT_S = 900.0
"""The first machine of a large model waits until its files were read once, a second per GB."""


class Entrance(NamedTuple):
    """Where the cluster is, as seen from here."""

    hello: Hello
    own_address: str
    """This machine's address on the way there."""


def find(code: JoinCode) -> Entrance:
    """Ask the machine that a code names which cluster it is.

    Raises:
        Refused: nothing can be reached there; the message says where, and what may be in the way.
        Invalid: what answers is another cluster, another version, or no SPS2.
    """
    place = f"{code.address}:{code.port}"
    try:
        with socket.create_connection((code.address, code.port), timeout=REACH_S) as connection:
            own = str(connection.getsockname()[0])
            line = connection.makefile("rb").readline(MAX_BYTES)
    except ConnectionRefusedError:
        raise Refused(
            f"nothing listens at {place}, tried from this machine: has the cluster ended (`spsctl "
            f"status` there)? {_firewall(code)}"
        ) from None
    except OSError as error:
        raise Refused(
            f"cannot reach {place} ({error.strerror or 'no answer'}): is this machine on the same "
            f"network as {code.address}? {_firewall(code)}"
        ) from None
    try:
        hello = msgspec.json.decode(line, type=Hello)
    except (ValueError, RecursionError):
        raise Invalid(f"what answers at {place} is not SPS2; ask for a new code") from None
    if (hello.sps2, hello.schema) != (VERSION, schema_hash()):
        raise Invalid(
            f"the cluster is SPS2 {hello.sps2} (messages {hello.schema}), and this machine has "
            f"{VERSION} ({schema_hash()}): install one version on all machines"
        )
    if fingerprint(hello.key) != code.fingerprint:
        raise Invalid(
            f"another cluster than the code's answers at {place}, or its keys were made anew: ask "
            "for a new code (`spsctl invite`)"
        )
    return Entrance(hello, own)


async def admitted(code: JoinCode, hello: Hello, request: JoinCluster) -> Admission:
    """Join with a code, over a channel that only its cluster can read.

    Raises:
        Invalid: the code is over, or the cluster cannot use what this machine offers.
        ServiceError: the cluster was lost meanwhile.
    """
    public, secret = pair_of(code.secret)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.key"
        key = Key("client", "of-the-code", public, secret, hello.key)
        keys.write_private(path, msgspec.json.encode(key))
        address = f"tcp://{code.address}:{code.port + 1}"
        peer = Peer(address, Bus(keys=str(path)), "the cluster", connect_s=REACH_S)
    try:
        return _checked(await peer.call(request, ADMIT_S), hello)
    except PeerLost as lost:
        raise Refused(f"{lost}; tried {address}. {_firewall(code)}") from None
    except Invalid:
        if peer.is_turned_away:
            raise Invalid(
                "the code is not known there any more; `spsctl invite` prints another, where the "
                "cluster is"
            ) from None
        raise
    finally:
        await peer.close()


def _checked(admission: Admission, hello: Hello) -> Admission:
    """Refuse keys that are not those of the cluster in the code."""
    key = msgspec.json.decode(admission.key, type=Key)
    if key.public != hello.key or not admission.shards:
        raise Invalid("the cluster's answer does not fit the code: ask for a new one")
    return admission


def _firewall(code: JoinCode) -> str:
    return (
        f"A firewall on either machine must let TCP through: ports {code.port} to {code.port + 2} "
        "there, those of the cluster (docs/nodes.md, Ports), and those of shards on both."
    )
