"""Imports the UCX library on first use, with the settings that a data plane needs."""

import importlib
import os
from typing import Any

import psutil

SETTINGS = {
    "UCX_TLS": "^sm",  # endpoints over shared memory never notice a dead peer
    "UCX_RNDV_THRESH": "128k",  # smaller messages go at once, without a rendezvous
    "UCX_TCP_TX_SEG_SIZE": "128k",  # a 30 KiB frame: 200 us there and back, 350 with 8 KiB
    "UCX_TCP_RX_SEG_SIZE": "128k",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
    "UCX_LOG_LEVEL": "fatal",  # other errors come as exceptions
}


def load() -> tuple[Any, Any]:
    """Import ucxx on first use; returns its extension module and its array wrapper.

    Settings in the environment have priority. The transports in use are TCP, and RDMA and CUDA if
    the UCX library has them.

    Raises:
        ImportError: ucxx is not installed, or its library is broken.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    library = importlib.import_module("ucxx._lib.libucxx")
    return library, importlib.import_module("ucxx._lib.arr").Array


def device_options(host: str) -> dict[str, str]:
    """Options that keep UCX to the network interface of `host`, unless the user set another."""
    if "UCX_NET_DEVICES" in os.environ:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return {"NET_DEVICES": name}
    return {}
