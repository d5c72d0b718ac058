"""A cluster's configuration: a TOML file, overridden by flags."""

from sps2.common.config.cluster import (
    ENVIRONMENT,
    Cluster,
    DeviceName,
    Dtype,
    Quantize,
    Transport,
    environment_bus,
    is_loopback,
    load,
)
from sps2.common.config.gateway import Gateway
from sps2.common.config.sections import (
    Bus,
    Directory,
    Joining,
    Kv,
    Log,
    NotNegative,
    Port,
    Positive,
    Scheduler,
    Section,
    Telemetry,
    Tracing,
)
from sps2.common.config.sharing import Sharing

__all__ = [
    "ENVIRONMENT",
    "Bus",
    "Cluster",
    "DeviceName",
    "Directory",
    "Dtype",
    "Gateway",
    "Joining",
    "Kv",
    "Log",
    "NotNegative",
    "Port",
    "Positive",
    "Quantize",
    "Scheduler",
    "Section",
    "Sharing",
    "Telemetry",
    "Tracing",
    "Transport",
    "environment_bus",
    "is_loopback",
    "load",
]
