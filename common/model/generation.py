"""How a model wants its tokens drawn where a request does not say; imports no torch."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from sps2.common.errors import Invalid
from sps2.common.model.config import read_json

FILE = "generation_config.json"


class SamplingDefaults(Struct, frozen=True):
    """What generation_config.json recommends; None is what the file leaves open.

    As in vLLM (`--generation-config auto`), `do_sample` is not looked at: whether tokens are drawn
    at random is decided by the temperature.
    """

    temperature: Annotated[float, Meta(ge=0)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    """-1 and 0 are off."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None


def sampling_defaults(folder: Path) -> SamplingDefaults:
    """What the model in `folder` recommends; nothing if it has no generation_config.json.

    Raises:
        Invalid: the file is broken, or a value out of range; says which.
    """
    path = folder / FILE
    if not path.exists():
        return SamplingDefaults()
    try:
        return msgspec.convert(read_json(path), SamplingDefaults)
    except msgspec.ValidationError as error:
        raise Invalid(f"{path} cannot be used: {error}; mend or remove it") from error
