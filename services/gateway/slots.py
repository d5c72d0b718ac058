"""How many requests the gateway handles at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from sps2.common.errors import Refused
from sps2.common.words import counted


class Slots:
    """A limit on the requests that run; each choice counts as one."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def check(self) -> None:
        """Raise Refused if no slot is free."""
        if self.used >= self.total:
            raise self._refusal(1)

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold `count` slots while the block runs. Raises Refused if too few are free.

        Args:
            count: at most `total`, as `validate.choices_of` ensures.
        """
        if self.used + count > self.total:
            raise self._refusal(count)
        self.used += count
        try:
            yield
        finally:
            self.used -= count

    def _refusal(self, count: int) -> Refused:
        if self.used >= self.total:
            limit = counted(self.total, "request")
            return Refused(f"the server already handles {limit}, which is its limit; retry later")
        return Refused(
            f"the server handles {self.used} of at most {self.total} requests, and each of the "
            f"{count} choices wanted counts as one; retry later"
        )
