"""All targets, by name."""

from .bus import BusClient, BusServer, Telemetry
from .files_local import Keys, Pages, Profiles, Recordings, Toml, Traces
from .files_models import Gguf, ModelJson, Safetensors
from .http import Http, HttpBodies
from .payloads import Messages, Tensors
from .plane import Dialling, Listening
from .target import Target

TARGETS: dict[str, type[Target]] = {
    each.name: each
    for each in (
        *(BusServer, BusClient, Telemetry, Messages, Listening, Dialling, Tensors),
        *(Http, HttpBodies, Gguf, Safetensors, ModelJson, Toml, Keys, Pages),
        *(Traces, Profiles, Recordings),
    )
}
