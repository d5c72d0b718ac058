"""How a machine with a code gets what it needs to be a part of the cluster."""

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from sps2.cli import render
from sps2.common import keys
from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost, Refused, ServiceError
from sps2.common.keys import Key
from sps2.common.keys.join_code import JoinCode, fingerprint, pair_of
from sps2.common.messages import Admission, JoinCluster
from sps2.common.messages.schema import schema_hash
from sps2.common.validation import MALFORMED
from sps2.services.compatibility import VERSION
from sps2.services.joining import mdns
from sps2.services.joining.hello import MAX_BYTES, Hello

REACH_S = 8.0
SEARCH_S = 2.0
"""How long this machine listens to who announces a cluster by mDNS."""
MOST_PLACES = 8
"""Where a cluster is looked for that is announced in several; anybody can announce any number."""
ADMIT_S = 900.0
"""The first machine of a large model waits until its files were read once, a second per GB."""


class Entrance(NamedTuple):
    """Where the cluster is, as seen from here."""

    code: JoinCode
    """The code; its address and port are those that answered."""
    hello: Hello
    own_address: str
    """This machine's address on the way there."""


def find(code: JoinCode) -> Entrance:
    """The cluster that a code names: at the address in it, else where mDNS says that it is.

    Raises:
        Refused: nothing can be reached; the message says where, and what may be in the way.
        Invalid: what answers is another cluster, another version, or no SPS2.
    """
    try:
        found = _ask(code)
    except (Refused, Invalid) as error:
        found = _announced(code, error)
    hello = found.hello
    if (hello.sps2, hello.schema) != (VERSION, schema_hash()):
        raise Invalid(
            f"the cluster is SPS2 {hello.sps2} (messages {hello.schema}), and this machine has "
            f"{VERSION} ({schema_hash()}): install one version on all machines"
        )
    return found


def _announced(code: JoinCode, error: Refused | Invalid) -> Entrance:
    """The cluster of a code at an address that is announced, where it proves that it has the key.

    Raises the error with which the code's own address failed if there is none.
    """
    render.note(f"{_place(code)} does not have the cluster; asking this network for it by mDNS")
    words, kind = str(error).rstrip("."), type(error)
    try:
        heard = asyncio.run(mdns.heard(SEARCH_S))
    except Refused as why:
        raise kind(f"{words}. It cannot be found by mDNS either: {why}") from None
    places = [
        msgspec.structs.replace(code, address=each.address, port=each.port)
        for each in heard
        if _is_of(code, each.hello)
    ]
    for there in places[:MOST_PLACES]:
        if there == code:
            continue
        try:
            found = _ask(there)
            asyncio.run(_prove(found))
        except ServiceError as failure:
            render.note(f"{_place(there)} is announced as the cluster: {failure}", "yellow")
            continue
        render.note(f"found the cluster at {_place(there)}, by mDNS")
        return found
    raise kind(f"{words}. Nor was the cluster found on this network by mDNS.") from None


def _ask(code: JoinCode) -> Entrance:
    """Ask the machine that a code names which cluster it is; raises as `find`."""
    place = _place(code)
    try:
        with socket.create_connection((code.address, code.port), timeout=REACH_S) as connection:
            own = str(connection.getsockname()[0])
            line = _line(connection)
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
    except MALFORMED:
        raise Invalid(f"what answers at {place} is not SPS2; ask for a new code") from None
    if not _is_of(code, hello):
        raise Invalid(
            f"another cluster than the code's answers at {place}, or its keys were made anew: ask "
            "for a new code (`spsctl invite`)"
        )
    return Entrance(code, hello, own)


def _line(connection: socket.socket) -> bytes:
    """What comes up to the first newline, within `REACH_S`, however slowly."""
    until_s, line = time.monotonic() + REACH_S, b""
    while not line.endswith(b"\n") and len(line) < MAX_BYTES:
        connection.settimeout(max(0.001, until_s - time.monotonic()))
        if not (said := connection.recv(MAX_BYTES - len(line))):
            break
        line += said
    return line


def _is_of(code: JoinCode, hello: Hello) -> bool:
    """Whether the key that was announced or said is that of the cluster in the code."""
    try:
        return fingerprint(hello.key) == code.fingerprint
    except Invalid:
        return False


async def admitted(found: Entrance, request: JoinCluster) -> Admission:
    """Join with a code, over a channel that only its cluster can read.

    Raises:
        Invalid: the code is over, or the cluster cannot use what this machine offers.
        ServiceError: the cluster was lost meanwhile.
    """
    async with _channel(found) as peer:
        return _checked(await peer.call(request, ADMIT_S), found.hello)


async def _prove(found: Entrance) -> None:
    """Have what answers prove that it has the cluster's secret key; raises as `admitted`."""
    async with _channel(found) as peer:
        await peer.connect()


@asynccontextmanager
async def _channel(found: Entrance) -> AsyncIterator[Peer]:
    """A connection on which each side proves its key: the cluster's, and the code's."""
    code = found.code
    public, secret = pair_of(code.secret)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.key"
        key = Key("client", "of-the-code", public, secret, found.hello.key)
        keys.write_private(path, msgspec.json.encode(key))
        address = f"tcp://{code.address}:{code.port + 1}"
        peer = Peer(address, Bus(keys=str(path)), "the cluster", connect_s=REACH_S)
    try:
        yield peer
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


def _place(code: JoinCode) -> str:
    return f"{code.address}:{code.port}"
