"""One stage of a pipeline in a prefill: what it exchanges with the stages before and after it."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import torch
from torch import Tensor

from sps2.common.messages import Peer, Prefill, Selection
from sps2.common.model.llama import Llama
from sps2.common.model.stage import Stage
from sps2.common.transport.expected import Like, check_from
from sps2.common.transport.frame import frame_for
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane


def of_stage(request: Prefill, stage: Stage) -> Prefill:
    """A request as one stage computes it: with the same stage of other shards, which has the keys
    and values of the same layers, and the thresholds of these layers."""

    def own(peers: Sequence[Peer]) -> tuple[Peer, ...]:
        return (peers[stage.rank],)

    replace = msgspec.structs.replace
    scheme = request.scheme
    if scheme.selection is not None:
        scheme = replace(scheme, selection=_of_layers(scheme.selection, stage))
    return replace(
        request,
        group=tuple(replace(each, peers=own(each.peers)) for each in request.group),
        targets=tuple(replace(each, peers=own(each.peers)) for each in request.targets),
        prefix=tuple(replace(each, peers=own(each.peers)) for each in request.prefix),
        scheme=scheme,
    )


def _of_layers(selection: Selection, stage: Stage) -> Selection:
    layers = slice(stage.layers.start, stage.layers.stop)
    return msgspec.structs.replace(
        selection, drop=selection.drop[layers], fine=selection.fine[layers]
    )


async def through(
    model: Llama,
    plane: Plane,
    inbox: Inbox,
    request: Prefill,
    stages: Sequence[Peer],
    ids: Tensor,
    rows: int,
    layers: Callable[[Tensor], Awaitable[Tensor]],
) -> Tensor:
    """Run this stage's layers on what the stage before sends; send the result to the next one.

    The hidden states come from the last stage to the first, which has the head.

    Args:
        stages: of this shard, in order.
        ids: [tokens] int64.
        rows: tokens whose hidden states are needed, of those of this shard.
        layers: runs the layers, as `Llama.forward`, with what it takes as `ids`.

    Returns:
        [rows, hidden_size], of use at the first stage only.

    Raises:
        PeerLost: another stage is gone.
    """
    stage, size = model.stage, model.config.hidden_size
    assert stage is not None
    first = min(span.start for span in request.group[request.rank].spans)
    before, after = (stages[(stage.rank + way) % stage.size].name for way in (-1, 1))

    async def received(tokens: int, dtype: torch.dtype) -> Tensor:
        tensors = await inbox.recv("hidden", 0, first, before)
        check_from(before, "hidden", tensors, (Like(dtype, (tokens, size)),))
        return plane.device.up(tensors)[0]

    entering = ids
    if not stage.is_first:
        entering = torch.empty(0, size, device=model.device)
        if len(ids):
            entering = await received(len(ids), torch.float32)
    leaving = await layers(entering)
    if len(leaving):
        frame = frame_for("hidden", (request.request,), (request.epoch,), 0, first, (leaving,))
        await plane.send(after, frame, (leaving,))
    if stage.is_first and rows:
        return await received(rows, model.dtype)
    return leaving.new_empty(rows, size, dtype=model.dtype)
