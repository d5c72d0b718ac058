"""A model's own sampling defaults, for requests that set none; imports no torch."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from sps2.common.errors import Invalid
from sps2.common.model.config import read_json

FILE = "generation_config.json"


class SamplingDefaults(Struct, frozen=True):
    """The recommendations of generation_config.json; None where the file has none.

    As in vLLM (`--generation-config auto`), `do_sample` is ignored: the temperature decides
    whether tokens are drawn at random.
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
    """Read the recommendations of the model in `folder`; all None without generation_config.json.

    Raises:
        Invalid: the file is broken, or a value is out of range; the message says which.
    """
    path = folder / FILE
    if not path.exists():
        return SamplingDefaults()
    try:
        return msgspec.convert(read_json(path), SamplingDefaults)
    except msgspec.ValidationError as error:
        raise Invalid(f"{path} cannot be used: {error}; mend or remove it") from error
