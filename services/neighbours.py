"""The processes of shards that share a machine, by their names: they share its cards and memory."""

from collections.abc import Sequence
from typing import NamedTuple


class Neighbours(NamedTuple):
    """What a process of a shard knows of those on its machine."""

    number: int
    """Its own among them, from 0."""
    processes: int
    """Itself included."""
    of_role: int
    """Those among them whose shards have its role."""

    def card(self, cards: int) -> int:
        """Which of the machine's cards it takes: they are assigned round-robin."""
        return self.number % cards

    def on_a_card(self, cards: int) -> int:
        """How many share a card, at most."""
        return -(-self.processes // cards)


ALONE = Neighbours(0, 1, 1)


def neighbours(service: str, here: Sequence[str]) -> Neighbours:
    """Of a process, by the names of all on its machine, in the order of `spsctl status`."""
    here = here if service in here else [*here, service]  # one more than was planned
    role = service.partition("-")[0]
    of_role = sum(name.partition("-")[0] == role for name in here)
    return Neighbours(here.index(service), len(here), of_role)
