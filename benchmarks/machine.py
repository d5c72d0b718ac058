"""What the machine of a measurement was, and what else it did."""

import platform

import psutil
import torch

from sps2.common.machine import cores, cpu_name


def machine() -> dict[str, str | int]:
    """For the record that a benchmark writes. `cores`: those that this process may use."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def busy_s() -> float:
    """CPU time that all processes here have had, and what a hypervisor kept from them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)
