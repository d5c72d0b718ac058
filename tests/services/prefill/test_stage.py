"""What a stage of a pipeline gets of a prefill, and how the stages' answers become one."""

import pytest

from sps2.common.messages import (
    Advanced,
    Deposited,
    Exchanged,
    Peer,
    Prefill,
    Prefilled,
    PrefillRank,
    Sampling,
    Scheme,
    Selection,
    Source,
    Target,
)
from sps2.common.model.stage import Stage
from sps2.common.spans import Span
from sps2.services.prefill.stage import of_stage
from sps2.services.prefill.tp_answers import Item, Parts

FIRST, SECOND = Stage(0, 2, Span(0, 2), 5), Stage(1, 2, Span(2, 5), 5)


def peers(shard: str) -> tuple[Peer, ...]:
    return tuple(Peer(f"{shard}.{rank}", "", b"") for rank in range(2))


def test_a_stage_works_with_the_same_stage_of_other_shards() -> None:
    whole = Prefill(
        "r",
        0,
        b"",
        (PrefillRank(peers("a"), (Span(0, 4),)), PrefillRank(peers("b"), (Span(4, 8),))),
        1,
        (Target(peers("c"), Span(0, 8)),),
        Sampling(1, 0),
        Scheme("csa", selection=Selection((1.0, 2.0, 3.0, 4.0, 5.0), (6.0, 7.0, 8.0, 9.0, 0.0))),
        (Source(peers("d"), (Span(0, 4),)),),
    )
    own = of_stage(whole, SECOND)
    asked = [each.peers for each in own.group]
    asked += [each.peers for each in own.targets]
    asked += [each.peers for each in own.prefix]
    assert [[peer.name for peer in each] for each in asked] == [["a.1"], ["b.1"], ["c.1"], ["d.1"]]
    selection = own.scheme.selection
    assert selection is not None
    assert (selection.drop, selection.fine) == ((3.0, 4.0, 5.0), (8.0, 9.0, 0.0))


def test_figures_of_the_stages_add_up() -> None:
    items: list[Item] = []
    parts = Parts(2, items.append, FIRST)
    parts.take(0, Advanced(10))
    parts.take(1, Advanced(20))
    for rank in range(2):
        figures = Exchanged({"kv": 5}, 2.0, 1.0, 0.5, 0.25, 4, 2, (0.1 + rank,), 3)
        parts.take(rank, Prefilled(None, (), 9.0, figures))
        parts.take(rank, Deposited(7, 1))
    *advanced, prefilled, deposited = items
    assert advanced == [Advanced(5), Advanced(15)]
    assert isinstance(prefilled, Prefilled)
    assert prefilled.exchanged == Exchanged({"kv": 10}, 4.0, 2.0, 1.0, 0.5, 8, 4, (0.1, 1.1), 6)
    assert deposited == Deposited(14, 2)


@pytest.mark.parametrize("stage", [FIRST, SECOND])
def test_exact_methods_stay_as_they_are(stage: Stage) -> None:
    whole = Prefill("r", 0, b"", (PrefillRank(peers("a"), (Span(0, 4),)),), 0, (), Sampling(1, 0))
    assert of_stage(whole, stage).scheme == whole.scheme
