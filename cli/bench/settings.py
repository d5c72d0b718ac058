"""Prefill settings by their names on the command line; imports no torch."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from sps2.common.errors import Invalid
from sps2.common.messages import Scheme, Selection
from sps2.services.scheduler.csa_thresholds import Calibration, Sparse, coded, selection
from sps2.services.scheduler.schemes import SHORT

Options = Mapping[str, str]

EXACT = Scheme("gather")
"""Sends every earlier token's KV once to every later rank: the fewest bytes without loss."""


def split(settings: str) -> list[str]:
    """Split a list of settings, for example `int8,csa:drop=.25,fine=2,star`."""
    found: list[str] = []
    for piece in filter(None, settings.split(",")):
        if "=" in piece and ":" not in piece and found:
            found[-1] += f",{piece.strip()}"
        else:
            found.append(piece.strip())
    return found


class Case(NamedTuple):
    """The case that a setting is used in; `calibration` is the model's, if it has one."""

    layers: int
    tokens: int
    ranks: int
    calibration: Calibration | None = None


def scheme_of(
    setting: str,
    layers: int,
    tokens: int = SHORT + 1,
    ranks: int = 4,
    calibration: Calibration | None = None,
) -> Scheme:
    """The scheme of a setting, for example `int8`, `csa:drop=.25,fine=2` or `balanced`.

    Raises:
        Invalid: the setting or option is unknown; the message lists the known ones.
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
        return make(options, Case(layers, tokens, ranks, calibration))
    except (KeyError, ValueError) as error:
        raise Invalid(f"{setting!r}: {error}", "settings") from error


def _plain(scheme: Scheme) -> Callable[[Options, Case], Scheme]:
    def make(options: Options, case: Case) -> Scheme:
        _only(options)
        return scheme

    return make


def _named(name: Sparse) -> Callable[[Options, Case], Scheme]:
    """The scheme of a request with attention `name`: see `services/scheduler/schemes.py`."""

    def make(options: Options, case: Case) -> Scheme:
        _only(options, "form")
        form = options.get("form", "coded")
        if form not in ("coded", "packed"):
            raise ValueError("form must be coded, as over slow links, or packed")
        if case.tokens <= SHORT:
            return Scheme("gather", kv_transfer_dtype="int8")
        chosen = selection(name, case.layers, case.ranks, case.calibration)
        if form == "coded":
            chosen = coded(chosen, name)
        return Scheme("csa", kv_transfer_dtype="int8", selection=chosen)

    return make


def _csa(options: Options, case: Case) -> Scheme:
    _only(
        *(options, "drop", "fine", "steps", "probes", "suffix", "rounds", "heldout"),
        "kv_transfer_dtype",
    )
    drop = float(options.get("drop", 0.2))
    rounds = int(options.get("rounds", 1))
    if rounds not in (1, 2):
        raise ValueError("rounds must be 1 or 2")
    selection = Selection(
        (drop,) * case.layers,
        (float(options.get("fine", 0)),) * case.layers,
        _steps(options),
        probes=int(options.get("probes", 4)),
        suffix=int(options.get("suffix", 64)),
        rounds=1 if rounds == 1 else 2,
        held_out=float(options.get("heldout", 0.05)),
    )
    return Scheme("csa", kv_transfer_dtype=_kv_transfer_dtype(options), selection=selection)


def _steps(options: Options) -> tuple[float, float] | None:
    """Those of keys and values, for example of `steps=.14/1`."""
    if "steps" not in options:
        return None
    keys, slash, values = options["steps"].partition("/")
    if not slash or float(keys) <= 0 or float(values) <= 0:
        raise ValueError("steps are those of keys and of values, for example .14/1")
    return float(keys), float(values)


def _hire(options: Options, case: Case) -> Scheme:
    """HiRE's selector: a fixed share of the blocks, whatever their mass."""
    _only(options, "budget", "probes", "suffix", "kv_transfer_dtype")
    none = (0.0,) * case.layers
    selection = Selection(
        none,
        none,
        probes=int(options.get("probes", 4)),
        suffix=int(options.get("suffix", 64)),
        held_out=1,  # the share is fixed: no KV head fetches more
        budget=float(options.get("budget", 0.3)),
    )
    return Scheme("csa", kv_transfer_dtype=_kv_transfer_dtype(options), selection=selection)


def _strided(options: Options, case: Case) -> Scheme:
    _only(options, "budget")
    budget = float(options.get("budget", 0.25))
    return Scheme("strided", selection=Selection((), (), budget=budget))


def _kv_transfer_dtype(options: Options) -> Literal["auto", "int8"]:
    kv_transfer_dtype = options.get("kv_transfer_dtype", "int8")
    if kv_transfer_dtype not in ("int8", "auto"):
        raise ValueError("kv_transfer_dtype must be int8 or auto")
    return "auto" if kv_transfer_dtype == "auto" else "int8"


def _only(options: Options, *known: str) -> None:
    for name in options:
        if name not in known:
            raise ValueError(f"no option {name!r}; there are {', '.join(known) or 'none'}")


SETTINGS: dict[str, Callable[[Options, Case], Scheme]] = {
    "exact": _plain(EXACT),
    "int8": _plain(Scheme("gather", kv_transfer_dtype="int8")),
    "balanced": _named("balanced"),
    "fast": _named("fast"),
    "csa": _csa,
    "hire": _hire,
    "strided": _strided,
    "star": _plain(Scheme("star")),
    "ring": _plain(Scheme("ring")),
    "ulysses": _plain(Scheme("ulysses")),
    "pass_q": _plain(Scheme("pass_q")),
}
"""The settings of the command line: functions from options and case to a scheme."""
