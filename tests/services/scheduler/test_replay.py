"""Equal event logs give equal actions, from any point on and in another process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.messages import CachedRun, PrefillOptions, Room
from sps2.services.scheduler import event_log
from sps2.services.scheduler.actions import Find, Launch, Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.event_log import EventLog, encoded
from sps2.services.scheduler.events import (
    Computed,
    Decoded,
    Ended,
    Event,
    Found,
    Granted,
    Joined,
    Lost,
    Parted,
    Prefilled,
    Progressed,
    Returned,
    RoomSeen,
    Shareable,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.replay import Recording
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, SHARING, shard


def play(policy: str, seed: int, events: int = 400, mixed: bool = False) -> EventLog:
    """The log of a cluster of four shards that meets everything, in a random order."""
    draw = Random(seed)
    settings = Scheduler(policy=policy, prefill_span_tokens=64, max_queue=16)  # type: ignore[arg-type]
    schemes = Schemes(CONFIG, 2, SHARING)
    core = Core(POLICIES[policy](settings, schemes), Fleet(*((0, 0, 4) if mixed else (2, 2))), 16)
    log = EventLog(core, settings, schemes)
    shards = (
        [shard("mixed", index, 64) for index in range(4)]
        if mixed
        else [shard("prefill", index) for index in range(2)]
        + [shard("decode", index, 64) for index in range(2)]
    )
    pages = {each.id: 64 for each in shards if each.pages}
    free = Room(pages, pages)
    now_s, count, stages, groups = 0.0, 0, dict[str, str](), dict[str, int]()

    def happen(event: Event) -> None:
        nonlocal count
        count += 1
        for action in log.handle(event, now_s):
            match action:
                case Find():
                    stages[action.request] = "finding"
                case Launch():
                    stages[action.request] = "launched"
                    groups[action.request] = len(action.plan.group)
                case Reject():
                    stages.pop(action.request, None)

    for each in shards:
        happen(Joined(each))
    happen(RoomSeen(free))
    while count < events:
        now_s += draw.expovariate(4)
        match draw.choice(("new", "on", "on", "on", "shard", "tick")):
            case "new":
                request = f"r{count}"
                stages[request] = "queued"
                options = PrefillOptions(sp_degree=draw.choice([None, None, 1, 2]))
                hashes = tuple(bytes([page]) * 4 for page in range(draw.randrange(8)))
                limit_s = draw.choice([None, None, 0.5])
                priority = draw.randrange(-1, 2)
                tokens, answer = draw.randrange(1, 500), draw.randrange(1, 60)
                happen(
                    Submitted(
                        Work(request, tokens, answer, options, hashes, False, priority, limit_s)
                    )
                )
            case "on" if stages:
                request = draw.choice(sorted(stages))
                match stages[request]:
                    case "finding":
                        runs = (CachedRun(shards[-1].id, 2, 1),)
                        stages[request] = "queued"
                        happen(Found(request, draw.choice([(), runs])))
                    case "launched":
                        stages[request] = "prefill"
                        happen(Granted(request, free))
                    case "prefill":
                        happen(Progressed(request, draw.randrange(100)))
                        stages[request] = draw.choice(["prefill", "prefilled", "returned"])
                    case "returned":
                        stages[request] = "queued"
                        happen(Returned(request, draw.choice([None, 0.1])))
                    case "prefilled":
                        stages[request] = "decoding"
                        took = [draw.uniform(0.01, 1.0) for _ in range(groups[request])]
                        happen(Computed(request, tuple(took)))
                        happen(Prefilled(request))
                        happen(Shareable(request))
                    case "decoding":
                        happen(Decoded(request, 8))
                        happen(Ended(request))
                        stages.pop(request)
                    case _ if draw.random() < 0.1:
                        happen(Ended(request))
                        stages.pop(request)
            case "shard":
                each = draw.choice(shards)
                happen(
                    draw.choice(
                        [
                            Lost(each.id, each.peer.name),
                            Joined(each),
                            Joined(each),
                            Parted(shards[0].peer.name, shards[-1].peer.name),
                        ]
                    )
                )
            case _:
                happen(Tick())
    return log


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_decides_the_same(policy: str, mixed: bool, seed: int) -> None:
    recording = Recording(play(policy, seed, mixed=mixed).lines(), "log")
    core = recording.core()
    entries = list(recording.replay(core))
    assert len(entries) >= 400
    assert {type(action) for entry in entries for action in entry.actions} >= {Launch, Find}


def test_from_a_state_in_the_middle_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "CHUNK", 150)
    recording = Recording(play("sps2", 1, 1000).lines(), "log")
    assert recording.header.earlier >= 600
    assert recording.header.state.requests
    assert len(list(recording.replay(recording.core()))) == len(recording.entries) < 400
    assert len(list(recording.replay(recording.core()))) == len(recording.entries)


def test_in_another_process_too(tmp_path: Path) -> None:
    """Sets of names have another order there."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\n".join(play("sps2", 2).lines()))
    program = (
        "import sys; from pathlib import Path\n"
        "from sps2.services.scheduler.replay import Recording\n"
        "recording = Recording.read(Path(sys.argv[1]))\n"
        "print(len(list(recording.replay(recording.core()))))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) >= 400


def test_other_actions_are_named() -> None:
    lines = list(play("sps2", 3).lines())
    number = next(number for number, line in enumerate(lines) if b'"Launch"' in line)
    lines[number] = lines[number].replace(b'"urgency":', b'"urgency":9')
    recording = Recording(lines, "log")
    with pytest.raises(Invalid, match=rf"log, line {number + 1}: the scheduler decides otherwise"):
        list(recording.replay(recording.core()))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "log is empty"),
        ([b"{}"], "recorded by 'another program'"),
        ([b"[1]"], "line 1: not a recording"),
        ([b"\xff"], "line 1: not a recording"),
        ([b'{"schema": "old", "version": "0.1"}'], "recorded by '0.1'"),
    ],
)
def test_what_is_no_recording(lines: list[bytes], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        Recording(lines, "log")


def test_a_cut_line_is_named() -> None:
    lines = list(play("fcfs", 1, 10).lines())
    with pytest.raises(Invalid, match="line 3: not a recording"):
        Recording([*lines[:2], lines[2][:20]], "log")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda lines: [lines[0], *lines[40:]], "line [23]: .*cannot follow|line [23]: .*decides"),
        (lambda lines: [*lines[:3], *lines[3:] * 2], "cannot follow|decides otherwise"),
        (lambda lines: [lines[0].replace(b'"queue":[]', b'"queue":["r"]'), *lines[1:]], "line 2"),
        (lambda lines: [lines[0].replace(b'"mixed":0', b'"mixed":"x"')], "line 1: not a rec"),
        (lambda lines: [lines[0].replace(b'"prefilling":[]', b'"prefilling":["r"]')], "first line"),
        (lambda lines: [b"[" * 200_000], "line 1: not a recording"),
        (lambda lines: [b'{"schema":' + b"[" * 200_000], "line 1: not a recording"),
        (
            lambda lines: [
                lines[0],
                b'{"at_s":0,"event":{"type":"Tick"},"actions":[{"type":"Reject","request":"r",'
                b'"error":["SystemExit","x"]}]}',
            ],
            "line 2: not a recording.*not an error that services have",
        ),
    ],
)
def test_a_damaged_recording_is_refused_with_its_line(
    spoil: Callable[[list[bytes]], list[bytes]], why: str
) -> None:
    lines = spoil(list(play("sps2", 4).lines()))

    def replay() -> None:
        recording = Recording(lines, "log")
        list(recording.replay(recording.core()))

    with pytest.raises(Invalid, match=why):
        replay()


def test_empty_lines_are_nothing() -> None:
    lines = list(play("sps2", 4, 20).lines())
    recording = Recording([b"", *lines, b"", b"\r\n"], "log")
    assert len(list(recording.replay(recording.core()))) == len(lines) - 1
    lines = list(play("sps2", 3).lines())
    number = next(number for number, line in enumerate(lines) if b'"Launch"' in line)
    lines[number] = lines[number].replace(b'"urgency":', b'"urgency":9')
    recording = Recording([b"", *lines], "log")
    with pytest.raises(Invalid, match=f"log, line {number + 2}:"):
        list(recording.replay(recording.core()))


@pytest.mark.parametrize(
    "error", [Invalid("a", "b", "c"), Refused("later", 3.5), PeerLost("decode-0", "gone")]
)
def test_errors_stay_what_they_are(error: Exception) -> None:
    log = play("fcfs", 1, 10)
    line = encoded(event_log.Entry(1.0, Tick(), (Reject("r", error),)))  # type: ignore[arg-type]
    (entry,) = Recording([*list(log.lines())[:1], line], "log").entries
    (action,) = entry.actions
    assert isinstance(action, Reject)
    assert type(action.error) is type(error)
    assert action.error.args == error.args


def test_secrets_of_shards_are_not_recorded() -> None:
    log = play("sps2", 1, 10)
    secret = shard("decode", 0).peer.token
    assert secret
    recording = Recording(log.lines(), "log")
    joined = [entry.event.shard for entry in recording.entries if isinstance(entry.event, Joined)]
    assert joined
    assert not any(peer.token for each in joined for peer in each.peers)
    later = Recording([log._header()], "log").header.state.fleet
    assert later.members
    assert not any(peer.token for each in later.members for peer in each.shard.peers)
