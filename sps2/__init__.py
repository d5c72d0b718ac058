"""Serves transformer models with long prompts, sequence-parallel; here is the SDK's short import.

`from sps2 import Client`. Everything else is in `sps2.cli`, `sps2.common`, `sps2.kernels` and
`sps2.services`; in the repository these are the folders beside this one.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sps2.common.client import AsyncClient, Client
    from sps2.common.errors import ServiceError

_MODULES = {
    "AsyncClient": "sps2.common.client",
    "Client": "sps2.common.client",
    "ServiceError": "sps2.common.errors",
}

__all__ = ["AsyncClient", "Client", "ServiceError"]


def __getattr__(name: str) -> object:
    """The SDK is imported when it is asked for: services and `spsctl` do without."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sps2' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
