"""Finds a workload by a name or a path: the one entry for commands."""

import math
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sps2.cli.workload.agents import BLOCK_TOKENS
from sps2.cli.workload.arrivals import Arrivals, Strategy
from sps2.cli.workload.drawn import Lengths, WithTail, parsed, shipped
from sps2.cli.workload.requests import Turn, Workload
from sps2.cli.workload.shaping import Shape
from sps2.cli.workload.timing import Timing, started
from sps2.cli.workload.traces import checked, read_trace
from sps2.common.errors import Invalid

AGENTS = "agents"
MIXED = "mixed"
DRAWN = 1000
"""Requests of a drawn workload if neither their number nor a time span is given."""

TRIES = 20
"""Requests that are drawn, at most, to find one that is short enough."""


def names() -> list[str]:
    """The distributions that come with the package."""
    return [*shipped().lengths, MIXED, AGENTS]


def find(
    source: str,
    *,
    limit: int | None = None,
    rate: float | None = None,
    cv: float | None = None,
    last_rate: float | None = None,
    strategy: Strategy = "linear",
    scale: float = 1.0,
    span_s: float | None = None,
    longest: int | None = None,
    think_scale: float = 1.0,
    longest_think_s: float | None = None,
    sessions: int | None = None,
    long_prompts: tuple[int, int] | None = None,
    seed: int = 0,
) -> Workload:
    """The workload that `source` names; equal arguments give the same one.

    Args:
        source: a distribution of `names()`, lengths such as `fixed:4096,128` and
            `range:100-2000,16-64`, or the path of a trace.
        limit: the number of requests.
        rate: requests per second on average; of sessions, how many start. The times of a trace are
            stretched to it; without it a trace keeps its times, and others come at 1 per second.
        cv: draws the times, with this coefficient of variation: 0 is regular, 1 a Poisson process,
            more comes in bursts. Without it a trace keeps its own pattern.
        last_rate: draws the times, at a rate that changes from `rate` to this one.
        strategy: how it changes.
        scale: lengths are multiplied by it.
        span_s: only what comes in so many seconds is kept.
        longest: requests with longer prompts, after scaling, are left out.
        think_scale: pauses in a session are multiplied by it.
        longest_think_s: longer ones are cut to it then.
        sessions: only so many sessions are kept.
        long_prompts: replaces the longest 5 % of a distribution's prompts by lengths in this range,
            before scaling.
        seed: of everything drawn.

    Raises:
        Invalid: an unknown name, a broken file, or arguments that make no sense.
        OSError: a file cannot be read.
    """
    shape = Shape(scale, longest, think_scale, longest_think_s, span_s, sessions, limit)
    arrivals = None
    if cv is not None or last_rate is not None:
        arrivals = Arrivals(rate or 1.0, 1.0 if cv is None else cv, last_rate, strategy)
    elif rate is not None:
        Arrivals(rate)  # checks it
    lengths = parsed(source) or shipped().lengths.get(source)
    if source == MIXED:
        lengths = WithTail(shipped().lengths["azure-conv"], long_prompts or (100_000, 500_000))
    elif long_prompts is not None:
        if source not in shipped().lengths:
            raise Invalid("long prompts replace those of a distribution that comes with SPS2 only")
        lengths = WithTail(shipped().lengths[source], long_prompts)
    if lengths is not None:
        return _drawn(source, lengths, shape, arrivals or Arrivals(rate or 1.0), seed)
    if source == AGENTS:
        return _agents(shape, arrivals or Arrivals(rate or 1.0), seed)
    path = Path(source).expanduser()
    if path.is_dir():
        raise Invalid(f"{source} is a folder: name the file of a trace")
    if cv is not None and rate is None and last_rate is None:
        known = read_trace(path, shape, Timing(seed=seed)).turns if path.exists() else []
        span = known[-1].at_s - known[0].at_s if known else 0.0
        arrivals = Arrivals(len(known) / span if span else 1.0, cv)
    if not path.exists():
        raise Invalid(
            f"there is no file {source!r}, and no such distribution; those are "
            f"{', '.join(names())}, "
            "fixed:PROMPT,ANSWER and range:LOW-HIGH,LOW-HIGH"
        )
    if rate is not None and arrivals is None and rate == math.inf:
        arrivals = Arrivals(rate)
    return read_trace(path, shape, Timing(arrivals, rate, seed))


def _drawn(name: str, lengths: Lengths, shape: Shape, arrivals: Arrivals, seed: int) -> Workload:
    draw = random.Random(f"lengths {seed}")
    wanted = shape.limit or (_in_span(arrivals, shape.span_s) if shape.span_s else DRAWN)
    sized = (shape.sized(Turn(0.0, *lengths.draw(draw)), 1) for _ in range(TRIES * wanted))
    turns = list(islice(filter(None, sized), wanted))
    return checked(Workload(name, Timing(arrivals, seed=seed).timed(turns, shape, False)), name)


def _agents(shape: Shape, arrivals: Arrivals, seed: int) -> Workload:
    if shape.limit is None:
        wanted = _in_span(arrivals, shape.span_s) if shape.span_s else DRAWN
        shape = replace(shape, limit=wanted)
    assert shape.limit is not None
    drawn = shipped().agents.draw(random.Random(f"sessions {seed}"))
    sessions = islice(drawn, TRIES * shape.limit)
    turns = started(filter(None, map(shape.session, sessions)), arrivals, seed, shape)
    return checked(Workload(AGENTS, turns, shape.block(BLOCK_TOKENS, True)), AGENTS)


def _in_span(arrivals: Arrivals, span_s: float) -> int:
    """Requests that surely fill a time span."""
    rate = max(arrivals.rate, arrivals.last_rate or 0.0)
    return DRAWN if rate == math.inf else math.ceil(rate * span_s * 1.2) + 10
