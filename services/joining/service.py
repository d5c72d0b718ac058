"""The joining service on the bus: to the invited, and to machines that have joined."""

import logging
import time
from contextlib import suppress
from pathlib import Path

from sps2.common import keys
from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.config import text as config_text
from sps2.common.errors import ServiceError
from sps2.common.keys.invites import Invitations
from sps2.common.messages import (
    Admission,
    Done,
    Forget,
    JoinCluster,
    LeaveCluster,
    Piece,
    ReadModel,
    Role,
    ShowFleet,
)
from sps2.services.joining.model_files import ModelFiles
from sps2.services.joining.numbers import Numbers

FLEET_S = 5.0

log = logging.getLogger(__name__)


class InvitedService:
    """Handles what whoever has a code may ask: to join."""

    def __init__(
        self, cluster: Cluster, scheduler: Peer, files: ModelFiles, numbers: Numbers
    ) -> None:
        self._cluster = cluster
        self._key_file = _key_file(cluster)
        self._invitations = Invitations(self._key_file.parent)
        self._scheduler = scheduler
        self._files = files
        self._numbers = numbers

    async def join_cluster(self, request: JoinCluster) -> Admission:
        self._invitations.require(request.secret, request.machine)
        files = await self._files.all()
        fleet = await self._scheduler.call(ShowFleet(), FLEET_S)
        asked: dict[Role, int] = {
            "prefill": request.prefill,
            "decode": request.decode,
            "mixed": request.mixed,
        }
        shards = self._numbers.give(request.machine, asked, [shard.id for shard in fleet.shards])
        self._invitations.use(request.secret, request.machine)
        log.info("%s joins with %s", request.host, ", ".join(shards))
        return Admission(
            config_text.dump(self._cluster, "As the cluster has it."),
            keys.read_private(self._key_file),
            shards,
            self._files.folder.name,
            files,
            time.time(),
        )


class JoinedService:
    """Handles what a machine may ask that has joined, and so has the cluster's key."""

    def __init__(self, scheduler: Peer, files: ModelFiles, numbers: Numbers) -> None:
        self._scheduler = scheduler
        self._files = files
        self._numbers = numbers

    async def read_model(self, request: ReadModel) -> Piece:
        return await self._files.read(request.file, request.offset, request.size)

    async def leave_cluster(self, request: LeaveCluster) -> Done:
        for shard in self._numbers.free(request.machine):
            with suppress(ServiceError):
                await self._scheduler.call(Forget(shard), FLEET_S)
        return Done()


def _key_file(cluster: Cluster) -> Path:
    return keys.beside(cluster.bus, keys.CLUSTER)
