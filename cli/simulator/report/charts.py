"""Charts as SVG for a page: they take their colours from its style, and need no script."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 42
DASHES = ("", "6 3", "2 3")
COLOUR_COUNT = 10
LEAST_LOG_RATIO = 10


class Line(NamedTuple):
    """A line of a chart. limits: low and high of each point, if any. place: decides its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int
    limits: Sequence[tuple[float, float]] = ()


class Axis(NamedTuple):
    """title: with the unit. is_log: logarithmic if the values differ by enough."""

    title: str
    is_log: bool = False
    low: float | None = None
    high: float | None = None


class _Scale:
    """From values to pixels. size: negative if pixels go down while values go up."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, size: float) -> None:
        finite = [each for each in values if isfinite(each)]
        positive = [each for each in finite if each > 0]
        self._is_log = (
            axis.is_log and len(positive) > 1 and max(positive) >= LEAST_LOG_RATIO * min(positive)
        )
        used = positive if self._is_log else finite
        low = min(used, default=0.0) if axis.low is None or self._is_log else axis.low
        high = max(used, default=1.0) if axis.high is None else axis.high
        if high <= low:
            high = low + (abs(low) or 1.0)
        self._start, self._size = start, size
        self._low, self._high = self._of(low), self._of(high)

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._low) / (self._high - self._low)
        return self._start + self._size * min(max(share, -0.02), 1.02)

    def ticks(self) -> list[float]:
        if self._is_log:
            decades = range(floor(self._low), ceil(self._high) + 1)
            few = self._high - self._low < 2
            steps = (1, 2, 5) if few else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
            return [each for each in found if self._low - 1e-9 <= log10(each) <= self._high + 1e-9]
        span = self._high - self._low
        step = 10.0 ** floor(log10(span / 4))
        step *= next(each for each in (1, 2, 5, 10) if span / (step * each) <= 6)
        first = ceil(self._low / step - 1e-9)
        return [index * step for index in range(first, floor(self._high / step + 1e-9) + 1)]

    def _of(self, value: float) -> float:
        return log10(max(value, 1e-12)) if self._is_log else value


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, stepped: bool = False) -> str:
    """Lines, with whiskers where there are limits; an SVG element."""
    lines = [each for each in lines if each.points]
    if not lines:
        return '<p class="quiet">nothing to draw</p>'
    every = [point for line in lines for point in line.points]
    limits = [limit for line in lines for pair in line.limits for limit in pair]
    across = _Scale([px for px, _ in every], x, LEFT, WIDTH - LEFT - RIGHT)
    up = _Scale([*(py for _, py in every), *limits], y, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM))
    parts = [_open(f"{y.title} by {x.title}"), *_grid(across, up, x, y)]
    for line in lines:
        places = [(across(px), up(py)) for px, py in line.points]
        stroke = f'class="line c{line.place % COLOUR_COUNT}"'
        dash = DASHES[line.place // COLOUR_COUNT % len(DASHES)]
        stroke += f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f"<g><title>{escape(line.name)}</title>")
        parts.append(f'<path {stroke} d="{_path(places, stepped)}"/>')
        for (px, py), pair in zip(places, line.limits, strict=False):
            low, high = up(pair[0]), TOP if not isfinite(pair[1]) else up(pair[1])
            parts.append(f'<path {stroke} d="M{px:.1f} {low:.1f}V{high:.1f}"/>')
            parts.append(f'<circle class="dot c{line.place % COLOUR_COUNT}" cx="{px:.1f}" ')
            parts.append(f'cy="{py:.1f}" r="3"/>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def bar_chart(names: Sequence[str], parts: Mapping[str, Sequence[float]], title: str) -> str:
    """Stacked horizontal bars, one for each name; parts: their widths by kind."""
    totals = [sum(each[place] for each in parts.values()) for place in range(len(names))]
    most = max(totals, default=0.0)
    if not most:
        return '<p class="quiet">nothing to draw</p>'
    height = 24 * len(names) + 26
    found = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f'<text class="label" x="{WIDTH / 2}" y="{height - 6}" text-anchor="middle">',
        f"{escape(title)}</text>",
    ]
    for place, name in enumerate(names):
        left, top = 0.0, 24 * place + 2
        for kind, (each, widths) in enumerate(parts.items()):
            width = widths[place] / most * WIDTH
            found.append(
                f'<rect class="fill c{kind % COLOUR_COUNT}" x="{left:.1f}" y="{top}" height="20" '
                f'width="{width:.1f}"><title>{escape(name)}: {escape(each)} '
                f"{widths[place]:.3g}</title></rect>"
            )
            left += width
        found.append(f'<text class="over" x="5" y="{top + 14}">{escape(name)}</text>')
    return "".join([*found, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """The colours of lines or kinds, by their places."""
    items = "".join(
        f'<li><span class="swatch c{place % COLOUR_COUNT}"></span>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _open(label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in across.ticks():
        place = across(tick)
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 14}" text-anchor="middle">')
        parts.append(f"{_tick(tick)}</text>")
    for tick in up.ticks():
        place = up(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{place + 3:.1f}" text-anchor="end">')
        parts.append(f"{_tick(tick)}</text>")
    middle = (LEFT + right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">')
    parts.append(f"{escape(x.title)}</text>")
    parts.append(f'<text class="label" transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" ')
    parts.append(f'text-anchor="middle">{escape(y.title)}</text>')
    return parts


def _path(places: Sequence[tuple[float, float]], stepped: bool) -> str:
    (x, y), *rest = places
    found = [f"M{x:.1f} {y:.1f}"]
    for x, y in rest:
        found.append(f"H{x:.1f}V{y:.1f}" if stepped else f"L{x:.1f} {y:.1f}")
    return "".join(found)


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.6g}"
