"""Which call a result answers: Ollama's results often name a function alone, or nothing."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple


class Call(NamedTuple):
    """A call, by its id and its function's name."""

    id: str
    name: str


class OpenCalls:
    """The calls of a conversation that have no result yet, in their order."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, Call] = OrderedDict()
        self._by_id: defaultdict[str, deque[int]] = defaultdict(deque)
        self._by_name: defaultdict[str, deque[int]] = defaultdict(deque)
        self._made = 0

    def add(self, calls: Iterable[Call]) -> None:
        """Open further calls."""
        for call in calls:
            self._open[self._made] = call
            self._by_id[call.id].append(self._made)
            self._by_name[call.name].append(self._made)
            self._made += 1

    def close(self, call_id: str, function: str) -> Call | None:
        """Close the first open call of an id, or else of a function, or else of any."""
        if call_id:
            place = self._first(self._by_id.get(call_id))
        elif function:
            place = self._first(self._by_name.get(function))
        else:
            place = next(iter(self._open), None)
        return None if place is None else self._open.pop(place)

    def _first(self, places: deque[int] | None) -> int | None:
        """The first of these places that is open; those before it are forgotten."""
        while places and places[0] not in self._open:
            places.popleft()
        return places[0] if places else None
