"""Finds stop strings in text that comes in pieces; holds back text that might become one."""


class StopStrings:
    """Turns text into text that may be shown, however it is cut into pieces.

    The match that is complete first ends the text; of several that end together, the longest does.
    """

    def __init__(self, stops: tuple[str, ...], shows_stop: bool = False) -> None:
        self._stops = stops
        self._shows_stop = shows_stop
        self._held = ""
        self.hit = False
        self.found = ""

    def add(self, text: str) -> str:
        """Add text; returns what may be shown now.

        A stop string sets `hit` and `found`, and the text ends before it, or with `shows_stop`
        after it.
        """
        self._held += text
        found = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            self.hit = True
            stop, start = min(found)
            self.found = self._held[start:stop]
            shown, self._held = self._held[: stop if self._shows_stop else start], ""
            return shown

        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """The text that was held back, once no more follows."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest suffix of the held text that is a prefix of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
