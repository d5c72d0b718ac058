"""Whether two candidates can be told apart."""

from dataclasses import dataclass
from math import sqrt

from sps2.cli.simulator.comparison import compare
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.planning.capacity import Capacity
from sps2.cli.simulator.planning.goals import Aims
from sps2.cli.simulator.planning.trials import Trials


@dataclass(frozen=True)
class Apart:
    """The choice against the runner-up.

    rates: at which both were run with the same requests. change: of the share within the SLOs, from
    the first to the second. ratio: of the second's worth to the first's. is_distinct: whether the
    first is better with 95 % confidence. reason: in words.
    """

    rates: tuple[float, float]
    change: Figure
    ratio: float
    is_distinct: bool
    reason: str


def tell_apart(
    trials: Trials, aims: Aims, first: Capacity, second: Capacity, requests: int
) -> Apart:
    """Compare two capacities.

    The sample's error: both are run with the same requests at a rate between their capacities, and
    their shares within the SLOs compared request by request. The profile's error is the same for
    both if they have the same profile: the order must be the same for times that are longer, and
    for those that are shorter. Otherwise both errors count.
    """
    one, two = first.candidate, second.candidate
    if aims.is_provisioning:
        rates = aims.rate, aims.rate
    else:
        worths = [aims.worth(each.candidate, each.rate.value) for each in (first, second)]
        middle = sqrt(worths[0] * worths[1])
        rates = aims.needed(one, middle), aims.needed(two, middle)
    runs = [
        trials.run(each, rate, requests, "never").run
        for each, rate in zip((one, two), rates, strict=True)
    ]
    assert runs[0] is not None
    assert runs[1] is not None
    compared = compare(
        runs[0], runs[1], names=["goodput_share"], objectives=trials.objectives, most_shifts=0
    )
    change = compared.differences[0].change
    ratio = aims.worth(two, second.rate.value) / aims.worth(one, first.rate.value)
    if aims.is_provisioning and aims.expense(one) < aims.expense(two):
        more = aims.expense(two) / aims.expense(one) - 1
        reason = f"the runner-up needs {more:.0%} more {_unit(aims)}"
        if first.rate.low < aims.rate:
            return Apart(rates, change, ratio, False, f"{reason}, but the choice may not suffice")
        return Apart(rates, change, ratio, True, f"{reason}, and the choice surely suffices")
    same = runs[0].profile == runs[1].profile
    is_sampled = change.high < 0
    if change.low > 0:
        where = "the wanted rate" if aims.is_provisioning else "a rate between their capacities"
        reason = f"at {where}, the runner-up meets the SLOs more often"
    elif not is_sampled:
        reason = "with the same requests, no difference is left that chance does not explain"
    elif same:
        margins = [
            aims.worth(one, a) > aims.worth(two, b)
            for a, b in ((first.slower, second.slower), (first.faster, second.faster))
        ]
        if all(margins):
            reason = "with the same requests, and within the profile's margin"
            return Apart(rates, change, ratio, True, reason)
        reason = "within the profile's margin, the order may be the other way round"
    elif _margins_part(aims, first, second):
        return Apart(rates, change, ratio, True, "beyond the margins of both profiles")
    else:
        reason = "the margins of the two profiles are larger than the difference"
    return Apart(rates, change, ratio, False, reason)


def _margins_part(aims: Aims, first: Capacity, second: Capacity) -> bool:
    one, two = first.candidate, second.candidate
    gap = aims.worth(one, first.rate.value) - aims.worth(two, second.rate.value)
    below = aims.worth(one, first.rate.value - first.slower)
    above = aims.worth(two, second.faster - second.rate.value)
    return gap > sqrt(below**2 + above**2)


def _unit(aims: Aims) -> str:
    return "power" if aims.goal == "power" else "money"
