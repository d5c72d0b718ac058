"""Scheduling policies by name."""

from collections.abc import Callable

from sps2.common.config import Scheduler
from sps2.services.scheduler.policies.distserve import DistServe
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.policies.lars import Lars
from sps2.services.scheduler.policies.loongserve import LoongServe
from sps2.services.scheduler.policies.pecsched import PecSched
from sps2.services.scheduler.policies.preflow import Preflow
from sps2.services.scheduler.policies.sarathi import Sarathi
from sps2.services.scheduler.policies.sjf import Sjf
from sps2.services.scheduler.policies.splitwise import Splitwise
from sps2.services.scheduler.policies.sps2 import Sps2
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import Policy

POLICIES: dict[str, Callable[[Scheduler, Schemes], Policy]] = {
    "sps2": Sps2,
    "lars": Lars,
    "fcfs": Fcfs,
    "preflow": Preflow,
    "pecsched": PecSched,
    "sjf": Sjf,
    "sarathi": Sarathi,
    "loongserve": LoongServe,
    "distserve": DistServe,
    "splitwise": Splitwise,
}
