"""A rank's entries become layers, and in them what was computed and moved."""

from sps2.services.prefill.layers import layers
from sps2.services.prefill.timeline import Entry

ENTRIES = [
    Entry("compute", -1, 0.0, 1.0),  # embedding, first projections
    Entry("out", 0, 1.0, 3.0),
    Entry("in", 0, 1.0, 2.0),
    Entry("compute", 0, 1.5, 2.5),
    Entry("compute", 0, 2.5, 3.5),
    Entry("compute", -1, 3.5, 4.0),
    Entry("compute", 1, 4.0, 5.0),
    Entry("out", 0, 4.0, 4.5),  # of the first layer still
    Entry("compute", -1, 5.0, 6.0),
]


def test_what_is_between_two_attentions_belongs_to_the_first() -> None:
    notes = list(layers("p", ENTRIES))
    whole = {note.name: note for note in notes if note.parent == "p"}
    assert [*whole] == ["embed", "layer 0", "layer 1"]
    assert (whole["layer 0"].start_s, whole["layer 0"].stop_s) == (1.0, 4.5)
    assert (whole["layer 1"].start_s, whole["layer 1"].stop_s) == (4.0, 6.0)
    assert whole["layer 0"].detail == {"compute_s": 2.5, "exchange_s": 2.5, "hidden_s": 1.5}
    parts = [
        (note.name, note.start_s, note.stop_s)
        for note in notes
        if note.parent == whole["layer 0"].id
    ]
    assert parts == [
        ("compute", 1.5, 4.0),
        ("await", 1.0, 2.0),
        ("send", 1.0, 3.0),
        ("send", 4.0, 4.5),
    ]


def test_ids_are_the_same_whenever_somebody_asks() -> None:
    once, twice = ([note.id for note in layers("p", ENTRIES)] for _ in range(2))
    assert once == twice
    assert len({*once}) == len(once)
    assert not list(layers("p", []))
