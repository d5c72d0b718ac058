"""How many requests the gateway handles at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from sps2.common.errors import Refused


class Slots:
    """A limit on the requests in work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def check(self) -> None:
        """Raise Refused if no slot is free."""
        if self.used >= self.total:
            raise self._refusal()

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold `count` slots while the block runs. Raises Refused if too few are free.

        Args:
            count: at most `total`, as `validate.choices_of` ensures.
        """
        if self.used + count > self.total:
            raise self._refusal()
        self.used += count
        try:
            yield
        finally:
            self.used -= count

    def _refusal(self) -> Refused:
        if self.total == 1:
            return Refused("one request is in work, and no more may be; try again later")
        return Refused(f"{self.used} of {self.total} requests are in work; try again later")
