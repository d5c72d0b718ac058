"""Prefill settings by the names that the command line gives them; imports no torch."""

from collections.abc import Callable, Mapping
from typing import Literal

from sps2.common.errors import Invalid
from sps2.common.messages import Scheme, Selection

Options = Mapping[str, str]

EXACT = Scheme("gather")
"""Every earlier key once to every later rank: the fewest bytes without loss."""


def scheme_of(setting: str, layers: int) -> Scheme:
    """The scheme of a setting such as `int8`, `csa:drop=.002,fine=.01` or `balanced`.

    Raises:
        Invalid: there is no such setting or option; it says which there are.
    """
    name, _, rest = setting.partition(":")
    make = SETTINGS.get(name)
    if make is None:
        raise Invalid(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}", "settings")
    options: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"{setting!r}: {pair!r} is not of the form NAME=VALUE", "settings")
        options[key.strip()] = value.strip()
    try:
        return make(options, layers)
    except (KeyError, ValueError) as error:
        raise Invalid(f"{setting!r}: {error}", "settings") from error


def _plain(scheme: Scheme) -> Callable[[Options, int], Scheme]:
    def make(options: Options, layers: int) -> Scheme:
        _only(options)
        return scheme

    return make


def _csa(options: Options, layers: int) -> Scheme:
    _only(options, "drop", "fine", "probes", "suffix", "rounds", "heldout", "wire")
    drop = float(options.get("drop", 0.002))
    rounds = int(options.get("rounds", 2))
    if rounds not in (1, 2):
        raise ValueError("rounds must be 1 or 2")
    selection = Selection(
        (drop,) * layers,
        (float(options.get("fine", 0)),) * layers,
        probes=int(options.get("probes", 8)),
        suffix=int(options.get("suffix", 64)),
        rounds=1 if rounds == 1 else 2,
        held_out=float(options.get("heldout", 0.05)),
    )
    return Scheme("csa", wire=_wire(options), selection=selection)


def _hire(options: Options, layers: int) -> Scheme:
    """HiRE's selector: a fixed share of the blocks, whatever the mass."""
    _only(options, "budget", "probes", "suffix", "wire")
    none = (0.0,) * layers
    selection = Selection(
        none,
        none,
        probes=int(options.get("probes", 8)),
        suffix=int(options.get("suffix", 64)),
        held_out=1,  # the share is fixed: no KV head fetches more
        budget=float(options.get("budget", 0.3)),
    )
    return Scheme("csa", wire=_wire(options), selection=selection)


def _strided(options: Options, layers: int) -> Scheme:
    _only(options, "budget")
    budget = float(options.get("budget", 0.25))
    return Scheme("strided", selection=Selection((), (), budget=budget))


def _wire(options: Options) -> Literal["plain", "int8"]:
    wire = options.get("wire", "int8")
    if wire not in ("int8", "plain"):
        raise ValueError("wire must be int8 or plain")
    return "plain" if wire == "plain" else "int8"


def _only(options: Options, *known: str) -> None:
    for name in options:
        if name not in known:
            raise ValueError(f"no option {name!r}; there are {', '.join(known) or 'none'}")


SETTINGS: dict[str, Callable[[Options, int], Scheme]] = {
    "exact": _plain(EXACT),
    "int8": _plain(Scheme("gather", wire="int8")),
    "csa": _csa,
    "hire": _hire,
    "strided": _strided,
    "star": _plain(Scheme("star")),
    "ring": _plain(Scheme("ring")),
    "ulysses": _plain(Scheme("ulysses")),
    "pass_q": _plain(Scheme("pass_q")),
}
"""What the command line can name; a function from options and the number of layers to a scheme."""
