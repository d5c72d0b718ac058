"""Keys sort, filter, pause, choose and open; the screen's state is a value."""

from functools import reduce

from msgspec.structs import replace

from sps2.cli.top.controls import Controls
from sps2.cli.top.monitor import Monitor
from sps2.cli.top.snapshot import Picture

from .acts import BUS, event, heartbeat

SHARDS: dict[str, dict[str, float]] = {
    "prefill-0": {},
    "decode-0": {"kv_pages_idle": 0.0, "busy_s": 0.1},
    "decode-1": {"busy_s": 0.9, "question_received": 5e4},
}
"""By how much each counter grows in a second, where it is not as `heartbeat` says."""


def picture() -> Picture:
    """Four requests: the oldest has ended, "bb" is in prefill, "dd" in decode. No two orders of
    them are the same, nor of the shards."""
    monitor = Monitor("test", BUS)
    for place, (name, tokens) in enumerate((("aa", 10), ("bb", 900), ("cc", 50), ("dd", 70))):
        monitor.hear(event("queued", name, prompt_tokens=tokens), float(place))
    monitor.hear(event("reserving", "bb", owner="decode-1", group="prefill-0"), 5.0)
    monitor.hear(event("prefill", "bb"), 5.0)
    monitor.hear(event("reserving", "dd", owner="decode-0", group="prefill-0"), 5.0)
    monitor.hear(event("decode", "dd"), 5.0)
    monitor.hear(event("ended", "aa"), 5.0)
    for second in (1, 2):
        for shard, more in SHARDS.items():
            told = heartbeat(shard, second)
            counters = told.counters | {name: second * each for name, each in more.items()}
            monitor.hear(replace(told, counters=counters), float(second))
    return monitor.picture(5.0)


def pressed(*keys: str, controls: Controls | None = None) -> Controls:
    shown = picture()
    return reduce(lambda state, key: state.press(key, shown), keys, controls or Controls())


def requests(controls: Controls) -> list[str]:
    return [each.request for each in controls.requests(picture())]


def test_orders_of_requests() -> None:
    assert requests(Controls()) == ["bb", "cc", "dd", "aa"]  # what ended comes last
    assert requests(pressed("s")) == ["bb", "dd", "cc", "aa"]  # prompt
    assert requests(pressed("s", "s")) == ["cc", "bb", "dd", "aa"]  # stage
    assert requests(pressed("s", "s", "s")) == ["cc", "dd", "bb", "aa"]  # owner
    assert pressed("s", "s", "s", "s") == Controls()


def test_orders_of_shards() -> None:
    def shards(controls: Controls) -> list[str]:
        return [each.id for each in controls.shards(picture())]

    assert shards(Controls()) == ["prefill-0", "decode-0", "decode-1"]
    assert shards(pressed("o")) == ["decode-1", "prefill-0", "decode-0"]  # busy
    assert shards(pressed("o", "o")) == ["decode-0", "decode-1", "prefill-0"]  # KV
    assert shards(pressed("o", "o", "o")) == ["prefill-0", "decode-1", "decode-0"]  # traffic


def test_filter() -> None:
    typed = pressed("/", "b", "x", "backspace", "b")
    assert typed.typing
    assert requests(typed) == ["bb"]
    kept = pressed("enter", controls=typed)
    assert not kept.typing
    assert requests(kept) == ["bb"]
    assert len(requests(pressed("escape", controls=kept))) == 4
    assert len(requests(pressed("escape", controls=typed))) == 4
    # keys are text while it is typed, and do nothing else
    assert pressed("/", "q", "p", "?").filter == "qp?"
    assert not pressed("/", "q").quit
    by_owner = pressed("/", *"DECODE-1")
    assert requests(by_owner) == ["bb"]
    assert [each.id for each in by_owner.shards(picture())] == ["decode-1"]


def test_choosing_and_opening() -> None:
    assert Controls().chosen(picture()) == "bb"
    assert pressed("down").chosen(picture()) == "cc"
    assert pressed("down", "down", "k").chosen(picture()) == "cc"
    assert pressed("end", "down").chosen(picture()) == "aa"
    assert pressed("up").chosen(picture()) == "bb"
    opened = pressed("j", "enter")
    assert (opened.opened, opened.selected) == (True, "cc")
    assert not pressed("enter", controls=opened).opened
    assert not pressed("escape", controls=opened).opened
    nothing = Picture(picture().cluster)
    assert Controls().press("enter", nothing) == Controls()
    assert Controls().press("down", nothing) == Controls()


def test_pause_help_views_and_quit() -> None:
    assert pressed("p").paused
    assert not pressed("p", " ").paused
    assert pressed("?").help
    assert not pressed("?", "x").help
    assert pressed("q").quit
    assert pressed("?", "q").quit
    assert [pressed(*"v" * times).panel for times in range(5)] == [
        "all",
        "shards",
        "links",
        "requests",
        "all",
    ]
    assert pressed("x", "pagedown") == pressed("end")
