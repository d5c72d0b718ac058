"""What the machine of a measurement was, and what else it did."""

import platform
from pathlib import Path

import psutil
import torch

from sps2.common import cores


def machine() -> dict[str, str | int]:
    """For the record that a benchmark writes. `cores`: those that this process may use."""
    return {
        "cpu": _cpu(),
        "cores": cores.usable(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def busy_s() -> float:
    """CPU time that all processes here have had, and what a hypervisor kept from them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
