"""Linear least squares with coefficients that are not negative, for small problems."""

from collections.abc import Sequence

TOLERANCE = 1e-10
OUTLIER = 0.05
"""Residuals beyond this count in proportion to their size, not to its square."""
ROUNDS = 12


def fit(
    rows: Sequence[Sequence[float]], values: Sequence[float], counts: Sequence[float] = ()
) -> list[float]:
    """Coefficients that make sum(count * (row . coefficients / value - 1) ** 2) least.

    Errors are relative to `values`, which must be positive. Outliers weigh less (Huber's weights,
    found in a few rounds).

    Args:
        counts: how much each row counts; all the same if empty.
    """
    counts = counts or [1.0] * len(values)
    scaled = [[each / value for each in row] for row, value in zip(rows, values, strict=True)]
    weights = list(counts)
    found: list[float] = []
    for _ in range(ROUNDS):
        found = _not_negative(scaled, weights)
        residuals = [abs(_dot(row, found) - 1) for row in scaled]
        weights = [
            count * (min(1.0, OUTLIER / each) if each else 1.0)
            for count, each in zip(counts, residuals, strict=True)
        ]
    return found


def _not_negative(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Lawson and Hanson's active sets, on the normal equations; all values are 1."""
    count = len(rows[0])
    sizes = [max(sum(row[i] ** 2 for row in rows) ** 0.5, 1e-300) for i in range(count)]
    unit = [[row[i] / sizes[i] for i in range(count)] for row in rows]
    weighted = list(zip(unit, weights, strict=True))
    gram = [
        [sum(w * row[i] * row[j] for row, w in weighted) for j in range(count)]
        for i in range(count)
    ]
    target = [sum(w * row[i] for row, w in weighted) for i in range(count)]
    found = [0.0] * count
    free: list[int] = []
    for _ in range(10 * count):
        slopes = [target[i] - _dot(gram[i], found) for i in range(count)]
        waiting = [i for i in range(count) if i not in free and slopes[i] > TOLERANCE]
        if not waiting:
            break
        free.append(max(waiting, key=lambda i: slopes[i]))
        while free:
            tried = _solved([[gram[i][j] for j in free] for i in free], [target[i] for i in free])
            if min(tried) > 0:
                break
            steps = [
                found[i] / (found[i] - to) for i, to in zip(free, tried, strict=True) if to <= 0
            ]
            for i, to in zip(free, tried, strict=True):
                found[i] += min(steps) * (to - found[i])
            free = [i for i in free if found[i] > TOLERANCE]
        found = [0.0] * count
        for i, value in zip(free, tried if free else [], strict=True):
            found[i] = value
    return [value / size for value, size in zip(found, sizes, strict=True)]


def _solved(matrix: list[list[float]], values: list[float]) -> list[float]:
    """Gauss's elimination with pivots; equations that say nothing new give 0."""
    size = len(values)
    rows = [[*row, value] for row, value in zip(matrix, values, strict=True)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < TOLERANCE:
            continue
        for r in range(size):
            if r != i and rows[r][i]:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [
        rows[i][size] / rows[i][i] if abs(rows[i][i]) >= TOLERANCE else 0.0 for i in range(size)
    ]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
