"""The shard processes that share a machine, and so its cards and memory, by their names."""

from collections.abc import Sequence
from typing import NamedTuple


class Neighbours(NamedTuple):
    """What a shard process knows of the other shard processes on its machine."""

    number: int
    """The place of this process among them, from 0."""
    processes: int
    """How many they are, this process included."""
    of_role: int
    """How many of them belong to shards of its role, this process included."""

    def card(self, cards: int) -> int:
        """Which of the machine's cards this process uses: they are assigned round-robin."""
        return self.number % cards

    def on_a_card(self, cards: int) -> int:
        """How many processes share a card, at most."""
        return -(-self.processes // cards)


ALONE = Neighbours(0, 1, 1)


def neighbours(service: str, here: Sequence[str]) -> Neighbours:
    """The neighbours of a process, from the names of all on its machine, as in `spsctl status`."""
    here = here if service in here else [*here, service]  # one more than planned
    role = service.partition("-")[0]
    of_role = sum(name.partition("-")[0] == role for name in here)
    return Neighbours(here.index(service), len(here), of_role)
