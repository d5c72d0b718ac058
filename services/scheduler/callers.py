"""Who has requests, and when each last had one launched: callers take turns."""

from collections import Counter
from collections.abc import Iterable


class Callers:
    """The callers of all requests that have not ended.

    Args:
        turns: what `turns` was before.
        present: the callers of the requests that there are.
    """

    def __init__(self, turns: dict[str, float] | None = None, present: Iterable[str] = ()) -> None:
        self.turns = {} if turns is None else turns
        """When the last request of each caller that has requests was launched; 0 if none was."""
        self._present = Counter(present)

    def came(self, caller: str) -> None:
        """A request of this caller came."""
        self._present[caller] += 1
        self.turns.setdefault(caller, 0.0)

    def left(self, caller: str) -> None:
        """A request of this caller ended."""
        self._present[caller] -= 1
        if not self._present[caller]:
            del self._present[caller], self.turns[caller]
