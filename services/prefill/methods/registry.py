"""The methods by which a prefill group can share its attention, by name."""

from collections.abc import Callable

from sps2.common.errors import Invalid
from sps2.common.messages import Method
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.methods.csa import Csa
from sps2.services.prefill.methods.gather import Gather
from sps2.services.prefill.methods.pass_q import PassQ
from sps2.services.prefill.methods.ring_ulysses import Usp
from sps2.services.prefill.methods.star import Star
from sps2.services.prefill.methods.strided import Strided

METHODS: dict[Method, Callable[[Group], Attention]] = {
    "ring": Usp,
    "ulysses": Usp,
    "usp": Usp,
    "gather": Gather,
    "pass_q": PassQ,
    "csa": Csa,
    "strided": Strided,
    "star": Star,
}


def attend_by(group: Group) -> Attention:
    """The attention by the method of the group's scheme.

    Raises:
        Invalid: the method is unknown, or the model's heads or the spans do not allow it.
    """
    make = METHODS.get(group.scheme.method)
    if make is None:
        raise Invalid(f"there is no method {group.scheme.method!r}", "sps2")
    return make(group)
