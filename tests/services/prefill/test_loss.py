"""A rank that is lost, or that sends what nobody awaits, is an error for the others: no hang."""

import asyncio

import pytest

from sps2.common.errors import Internal, PeerLost
from sps2.common.messages import Method, Scheme, Selection
from sps2.common.messages.sharing import KvTransferDtype
from sps2.common.model.attend import inline
from sps2.common.spans import Span, consecutive, zigzag
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.registry import METHODS, attend_by
from sps2.services.tasks import gather_all, root_cause

from .ranks import Member, config, members, random_qkv, rows_of

RANKS = 4
TOKENS = 512
LAYERS = 2


def scheme_of(
    method: Method,
    kv_transfer_dtype: KvTransferDtype = "auto",
    *,
    rounds: int = 1,
    pipelined: bool = True,
) -> Scheme:
    columns = {"ulysses": RANKS, "usp": 2}.get(method, 1)
    selection = Selection((0.0,) * LAYERS, (0.1,) * LAYERS, rounds=rounds)  # type: ignore[arg-type]
    return Scheme(method, columns, kv_transfer_dtype, selection, pipelined)


def spans_of(scheme: Scheme) -> list[tuple[Span, ...]]:
    if scheme.method in ("ring", "ulysses", "usp", "pass_q"):
        return zigzag(TOKENS, RANKS // scheme.ulysses, scheme.ulysses)
    return consecutive(TOKENS, RANKS, 0.0, 64)


async def run(member: Member, layers: int, dim: int = 16) -> None:
    """The layers of one rank of a model with heads of this size."""
    shape = config(4, 4, dim, layers=LAYERS)
    rows = rows_of(member.request.group[member.request.rank].spans)
    q, k, v = (x[rows] for x in random_qkv(TOKENS, shape, 0))
    try:
        async with asyncio.TaskGroup() as sends:
            group = Group(shape, *member, inline, sends)
            attend = attend_by(group)
            for layer in range(layers):
                await attend(layer, q, k, v)
    except BaseExceptionGroup as failures:
        raise root_cause(failures) from failures


def leave(ranks: list[Member], rank: int) -> None:
    """Break a rank's links with all others."""
    for other, peer in enumerate(ranks):
        if other != rank:
            ranks[rank].plane.forget(peer.plane.name)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "in turn"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_lost_rank_is_peer_lost_to_the_others(
    method: Method, pipelined: bool, lost: int
) -> None:
    scheme = scheme_of(method, pipelined=pipelined)
    async with asyncio.timeout(120), members(spans_of(scheme), scheme) as ranks:

        async def lose() -> None:
            """Take part in the first layer, and vanish."""
            await run(ranks[lost], 1)
            leave(ranks, lost)

        with pytest.raises(PeerLost) as first:
            await gather_all(
                *(lose() if rank == lost else run(ranks[rank], LAYERS) for rank in range(RANKS))
            )
    assert first.value.peer == f"rank-{lost}"


@pytest.mark.parametrize(
    "scheme",
    [
        *(scheme_of(method) for method in METHODS),
        *(scheme_of(method, "int8") for method in ("ring", "gather", "ulysses", "usp", "csa")),
        scheme_of("csa", rounds=2),
    ],
    ids=lambda scheme: f"{scheme.method}-{scheme.kv_transfer_dtype}-{scheme.selection.rounds}",
)
@pytest.mark.parametrize("other", [0, RANKS - 1])
async def test_frames_of_another_model_are_an_error(scheme: Scheme, other: int) -> None:
    async with asyncio.timeout(120), members(spans_of(scheme), scheme) as ranks:
        with pytest.raises(Internal, match="is wanted; see that all shards run the same model"):
            await gather_all(
                *(run(each, LAYERS, 32 if each is ranks[other] else 16) for each in ranks)
            )
