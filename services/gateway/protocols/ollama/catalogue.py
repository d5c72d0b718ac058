"""The served model as Ollama's API lists it."""

from datetime import UTC, datetime

from msgspec import UNSET, UnsetType

from sps2.common.messages import Struct
from sps2.services.gateway.served_model import Served

NEVER = "9999-12-31T23:59:59Z"
"""When the model leaves memory."""
VERSION = "0.13.0"
"""The release of Ollama whose API is followed; clients ask for it to know what they may send."""
_PER = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


class Details(Struct, frozen=True, kw_only=True):
    parent_model: str = ""
    format: str = "safetensors"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Listed(Struct, frozen=True, kw_only=True):
    """An entry of `/api/tags`, and of `/api/ps`, where it has the last three fields too."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    expires_at: str | UnsetType = UNSET
    size_vram: int | UnsetType = UNSET
    context_length: int | UnsetType = UNSET


class Tags(Struct, frozen=True):
    """`GET /api/tags` and `GET /api/ps`."""

    models: list[Listed]


class Shown(Struct, frozen=True, kw_only=True):
    """`POST /api/show`."""

    modelfile: str = ""
    parameters: str
    template: str
    details: Details
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str


class Release(Struct, frozen=True):
    """`GET /api/version`."""

    version: str = VERSION


def listed(served: Served, running: bool) -> Tags:
    """The served model, by each of its names.

    Args:
        running: as one in memory.
    """
    card = served.card
    more = {"expires_at": NEVER, "size_vram": 0, "context_length": served.max_context}
    return Tags(
        [
            Listed(
                name=name,
                model=name,
                modified_at=_since(served),
                size=card.file_bytes,
                digest=served.fingerprint.removeprefix("fp_"),
                details=_details(served),
                **(more if running else {}),  # type: ignore[arg-type]
            )
            for name in served.names
        ]
    )


def shown(served: Served) -> Shown:
    """What is known of the served model."""
    card, defaults = served.card, served.sampling_defaults
    own = {
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
    }
    return Shown(
        parameters="\n".join(f"{name} {value}" for name, value in own.items() if value is not None),
        template=card.template,
        details=_details(served),
        model_info={
            "general.architecture": card.family,
            "general.basename": served.model,
            "general.parameter_count": card.parameters,
            f"{card.family}.context_length": served.max_context,
            f"{card.family}.vocab_size": served.vocab_size,
        },
        capabilities=[
            "completion",
            "embedding",
            "tools",
            *(["thinking"] if served.reasoning_parser != "none" else []),
        ],
        modified_at=_since(served),
    )


def _details(served: Served) -> Details:
    card = served.card
    return Details(
        family=card.family,
        families=[card.family],
        parameter_size=_short(card.parameters),
        quantization_level=card.weights,
    )


def _short(count: int) -> str:
    """A count as people write it, such as `134.5M`."""
    for unit, letter in _PER:
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count)


def _since(served: Served) -> str:
    return datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
