"""Combines telemetry events and the gateway's status into a picture of a cluster; no I/O."""

from collections.abc import Iterable
from typing import get_args

from sps2.cli.top.heartbeat_rates import Pulse
from sps2.cli.top.request_history import Course
from sps2.cli.top.snapshot import Link, Picture, Service, Shard, Totals
from sps2.common.bus.telemetry import Event, Heartbeat, role_of, shard_of
from sps2.common.config import Bus
from sps2.common.messages import ClusterStatus, Role, ShardStatus

LINGER_S = 10.0
"""How long a request is shown after it has ended."""
FORGET_S = 60.0
"""How long a silent process is shown that the gateway does not know."""
ROLES = get_args(Role)
_SILENCE = Pulse(Heartbeat("", 0, 0.0, 0), 0.0)


class Monitor:
    """The state of a cluster for the screen. All times are seconds on the watcher's clock.

    Events make the picture. What was missed, before the subscription or later, comes from the
    gateway's status, which is requested now and then.
    """

    def __init__(self, name: str, bus: Bus) -> None:
        self._name = name
        self._silent_s = bus.heartbeat_s * bus.missed_heartbeats
        self._pulses: dict[str, Pulse] = {}
        self._courses: dict[str, Course] = {}
        self._known: ClusterStatus | None = None
        self._problem = ""

    def hear(self, event: Event, now_s: float) -> None:
        """Handle an event from the bus."""
        if not isinstance(event, Heartbeat):
            course = self._courses.setdefault(event.request, Course(event.request, now_s))
            course.hear(event, now_s)
            return
        if event.service in self._pulses:
            self._pulses[event.service].hear(event, now_s)
        else:
            self._pulses[event.service] = Pulse(event, now_s)
        for request, tokens in event.tokens.items():
            if request in self._courses:
                self._courses[request].tokens = tokens

    def take(self, status: ClusterStatus, now_s: float) -> None:
        """Handle the gateway's status. Requests that it does not have are ended."""
        self._known, self._problem = status, ""
        running = {each.request for each in status.requests}
        for each in status.requests:
            since_s = now_s - each.age_s
            self._courses.setdefault(each.request, Course(each.request, since_s)).take(each, now_s)
        for request, course in self._courses.items():
            if request not in running and course.ended_s is None and now_s > course.heard_s + 1.0:
                course.end(now_s)

    def miss(self, problem: str) -> None:
        """Note that the gateway did not answer."""
        self._problem = problem

    def settled(self) -> bool:
        """Whether every known process has sent two heartbeats, so that all rates are known."""
        known = self._known
        if known is None:
            return False
        names = [each.service for each in known.services if each.state != "lost"]
        return all(name in self._pulses and self._pulses[name].heartbeats > 1 for name in names)

    def picture(self, now_s: float) -> Picture:
        """The cluster's state now."""
        self._forget(now_s)
        shards = self._shards(now_s)
        return Picture(
            self._totals(now_s, shards),
            self._services(now_s),
            shards,
            tuple(course.picture(now_s) for course in self._courses.values()),
            self._links(now_s),
        )

    def _forget(self, now_s: float) -> None:
        known = {each.service for each in self._known.services} if self._known else set()
        for name, pulse in list(self._pulses.items()):
            if name not in known and now_s - pulse.heard_s > FORGET_S:
                del self._pulses[name]
        for request, course in list(self._courses.items()):
            if course.ended_s is not None and now_s - course.ended_s > LINGER_S:
                del self._courses[request]

    def _lives(self, name: str, now_s: float) -> Pulse | None:
        """The pulse of a process; None if its heartbeats have stopped."""
        pulse = self._pulses.get(name)
        return pulse if pulse and now_s - pulse.heard_s <= self._silent_s else None

    def _gateways(self, now_s: float) -> list[Pulse]:
        names = [name for name in self._pulses if role_of(name) == "gateway"]
        return [pulse for each in names if (pulse := self._lives(each, now_s))]

    def _totals(self, now_s: float, shards: tuple[Shard, ...]) -> Totals:
        known = self._known
        gateways = self._gateways(now_s)
        scheduler = self._lives("scheduler", now_s) or _SILENCE
        pulses = [pulse for each in shards if (pulse := self._lives(each.id, now_s))]
        rates = [rate for pulse in pulses if (rate := pulse.rate("prefill_tokens")) is not None]
        waiting_for = self._problem or (known.waiting_for if known else "")
        state = "lost" if self._problem else "ready" if known and known.ready else "waiting"
        return Totals(
            self._name,
            known.model if known else "",
            state,
            waiting_for,
            known.missing if known and not self._problem else "",
            _sum(each.rate("sps2_requests_total") for each in gateways),
            sum(rates) if rates else None,
            _sum(each.rate("sps2_generation_tokens_total") for each in gateways),
            _longest(each.gauge("ttft_p50_s") for each in gateways),
            _longest(each.gauge("ttft_p99_s") for each in gateways),
            _longest(each.gauge("tbt_p50_s") for each in gateways),
            _longest(each.gauge("tbt_p99_s") for each in gateways),
            scheduler.count("requests_waiting"),
            scheduler.count("requests_running"),
            _hidden(*pulses),
        )

    def _services(self, now_s: float) -> tuple[Service, ...]:
        known = {each.service: each for each in self._known.services} if self._known else {}
        found = []
        for name in sorted({*known, *self._pulses}):
            status = known.get(name)
            pulse = self._lives(name, now_s)
            address = status.address if status else ""
            if pulse is None:
                state = "lost" if name in self._pulses else status.state if status else "lost"
                found.append(Service(name, state, address, status.pid if status else 0))
                continue
            heartbeat = pulse.last
            found.append(
                Service(
                    name,
                    heartbeat.state,
                    address,
                    heartbeat.pid,
                    heartbeat.rss_bytes,
                    heartbeat.waiting_for,
                )
            )
        return tuple(found)

    def _shards(self, now_s: float) -> tuple[Shard, ...]:
        known = {each.id: each for each in self._known.shards} if self._known else {}
        heard = {shard_of(name) for name in self._pulses if role_of(name) in ROLES}
        return tuple(
            self._shard(name, known.get(name), now_s)
            for name in sorted({*known, *heard}, key=_place)
        )

    def _shard(self, name: str, status: ShardStatus | None, now_s: float) -> Shard:
        duty = status.duty if status else None
        role, address = duty or role_of(name), status.address if status else ""
        pulse = self._lives(name, now_s)
        if pulse is None:
            silent = name in self._pulses or status is None
            state = "lost" if silent or status is None else status.state
            return Shard(name, role, state, status.pid if status else 0, address)
        others = [
            each
            for process in self._pulses
            if shard_of(process) == name and (each := self._lives(process, now_s))
        ]
        works = any(pulse.gauge(each) for each in ("owned", "held", "prefilling"))
        now: str = pulse.last.state
        if now == "ready" and status and status.state in ("draining", "drained"):
            now = status.state
        elif now == "ready" and works:
            now = "busy"
        return Shard(
            name,
            role,
            now,
            pulse.last.pid,
            address,
            None if (busy := pulse.rate("busy_s")) is None else min(1.0, busy),
            pulse.count("kv_pages"),
            pulse.count("kv_pages_free"),
            pulse.count("kv_pages_idle"),
            pulse.count("owned"),
            pulse.count("held"),
            pulse.count("prefilling"),
            _sum(each.flow("received") for each in others),
            _sum(each.flow("sent") for each in others),
            _hidden(pulse),
            status.left_out if status else "",
        )

    def _links(self, now_s: float) -> tuple[Link, ...]:
        totals: dict[tuple[str, str], tuple[int, float | None]] = {}
        for process in self._pulses:
            pulse = self._lives(process, now_s)
            for target, (sent, rate) in (pulse.links() if pulse else {}).items():
                ends = shard_of(process), target
                before, per_s = totals.get(ends, (0, None))
                totals[ends] = before + sent, _sum((per_s, rate))
        return tuple(
            Link(*ends, *totals[ends])
            for ends in sorted(totals, key=lambda each: (_place(each[0]), _place(each[1])))
        )


def _place(shard: str) -> tuple[int, int, str]:
    """Sort key by role and number: prefill-2 comes before prefill-10."""
    role, _, index = shard.partition("-")
    place = ROLES.index(role) if role in ROLES else len(ROLES)
    return place, int(index) if index.isdigit() else 0, shard


def _sum(parts: Iterable[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _longest(parts: Iterable[float | None]) -> float | None:
    return max((part for part in parts if part is not None), default=None)


def _hidden(*pulses: Pulse) -> float | None:
    """The hidden share of transfers in the last heartbeats, or else of all; None without any."""
    for lately in (True, False):
        took = _sum((p.change if lately else p.gauge)("exchange_s") for p in pulses)
        hidden = _sum((p.change if lately else p.gauge)("hidden_s") for p in pulses)
        if took and hidden is not None:
            return hidden / took
    return None
