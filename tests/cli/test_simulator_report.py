"""Reports of runs: tables, JSON, plots, and the page, also with hostile names and no requests."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from math import inf, isinf, isnan, nan
from pathlib import Path

import pytest

from sps2.cli import render
from sps2.cli.simulator.comparison import compare, shift_of
from sps2.cli.simulator.intervals import UNKNOWN, Figure
from sps2.cli.simulator.outcomes import Activity, Delay, Run
from sps2.cli.simulator.report import charts, documents, plots, series, table, words
from sps2.cli.simulator.report.page import page
from sps2.cli.simulator.report.records import records_of
from sps2.cli.simulator.statistics import Objectives, Summary, summarise
from sps2.common.errors import Invalid

from .made_runs import outcome, queued, run_of

HOSTILE = "</script><script>alert(1)</script><!--\"'&[bold]$x_{{records}}"
VOID = {"meta", "input", "path", "circle", "rect"}
NOTHING = [
    run_of([]),
    run_of([outcome("a")]),
    run_of([outcome(str(i), i, None, error="no", ended_s=i + 1.0) for i in range(9)]),
]


def summaries_of(runs: list[Run]) -> list[Summary]:
    return [summarise(run, objectives=Objectives(ttft_s=2.0)) for run in runs]


def page_of(runs: list[Run], **options) -> str:
    return page(runs, summaries_of(runs), **options)


def shown(parts, capsys: pytest.CaptureFixture[str]) -> str:
    for each in parts:
        render.show(each)
    return capsys.readouterr().out


class Page(HTMLParser):
    """Checks that elements are closed in order, and gathers texts, links and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.data: dict[str, str] = {}
        self.scripts: list[str] = []
        self._place = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("src", "href") if name in found]
        assert not any(name.startswith("on") for name in found)
        if tag == "script":
            self._place = found.get("id") or "code"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data[self._place] = self.data.get(self._place, "") + data
            self.scripts.append(self._place)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_marks_name_the_best_and_what_is_within_its_interval() -> None:
    figures = [Figure(5.0, 4, 6, 9), Figure(2.0, 1, 3, 9), Figure(2.9, 2, 4, 9), UNKNOWN]
    assert words.marks(figures, -1) == ["", "best", "near", ""]
    assert words.marks(figures, 1) == ["best", "", "", ""]
    assert words.marks(figures, 0) == [""] * 4
    unbounded = [Figure(9.0, 8.5, inf, 9), Figure(2.0, 1, inf, 9), Figure(2.5, 1.9, inf, 9)]
    assert words.marks(unbounded, -1) == ["", "best", "near"]


def test_labels_say_what_runs_differ_in() -> None:
    first = run_of([], policy="fcfs")
    assert words.labels([first, run_of([], policy="sjf", seed=5)]) == ["fcfs", "sjf"]
    assert words.labels([first, run_of([], rate=2.0)]) == ["1/s", "2/s"]
    assert words.labels([first, run_of([], policy="sjf", rate=2.0)]) == ["fcfs, 1/s", "sjf, 2/s"]
    assert words.labels([first, run_of([], seed=5)]) == ["seed 1", "seed 5"]
    assert words.labels([first, first]) == ["fcfs (1)", "fcfs (2)"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (nan, "s", "-"),
        (inf, "s", "∞"),
        (0.5, "s", "500ms"),
        (0.9996, "share", "100%"),
        (0.123, "share", "12.3%"),
        (1536, "bytes", "1.5 KiB"),
        (2.5, "times", "2.50x"),
        (12345, "tokens/s", "12k"),
    ],
)
def test_numbers_have_their_unit(value: float, unit: words.Unit, text: str) -> None:
    assert words.number(value, unit) == text


def test_a_table_of_one_run_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(table.tables_of(summaries_of([queued(0.5, margin=0.1)]), 200), capsys)
    assert re.search(r"TTFT, short +\d+ms \[\d+ms to \d+ms\]", found)
    assert re.search(r"bytes sent, kv +\d+\.\d [KMG]iB", found)
    assert re.search(r"wait: turn +\d+ms", found)
    assert "± 10 %" in found
    assert "stable: " in found


def test_a_table_of_several_runs_marks_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [queued(0.9), queued(0.9, shortest_first=True)]
    found = shown(table.tables_of(summaries_of(runs), 200), capsys)
    head, *rows = found.splitlines()
    assert head.split() == ["fcfs", "sjf"]
    [row] = [row for row in rows if row.startswith("TTFT of short prompts, mean")]
    assert re.fullmatch(r".{30,}s \[[^]]+\] +\S+s\* \[[^]]+\]", row)
    narrow = shown(table.tables_of(summaries_of(runs), 60), capsys)
    assert len(re.findall("(?m)^verdict", narrow)) == 2  # below one another


def test_a_diff_says_what_cannot_be_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    compared = compare(queued(0.9), queued(0.9, shortest_first=True, noise=2), most_shifts=1)
    found = shown(table.comparison_of(compared), capsys)
    assert re.search(r"requests_per_s .* cannot be told apart", found)
    assert re.search(r"ttft_s.short.mean +\S+ +\S+ +-\S+\n", found)
    assert "on sjf, this request would have had a TTFT of" in found


def test_json_comes_back_as_it_was() -> None:
    runs = [queued(0.8, count=60), run_of([])]
    compared = compare(runs[0], queued(0.8, count=60, shortest_first=True))
    data = documents.write(summaries_of(runs), [compared], runs[:1])
    raw = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert raw["runs"][0]["ttft_s"]["all"]["p99"]["high"] is None
    assert raw["runs"][1]["ttft_s"]["all"]["mean"]["value"] is None
    found = documents.read(data)
    assert isinf(found.runs[0].ttft_s.all.p99.high)
    assert isnan(found.runs[1].ttft_s.all.mean.value)
    assert found.requests == [runs[0].outcomes]
    assert documents.write(found.runs, found.comparisons, runs[:1]) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no results"),
        (b'{"runs": 3}', "no results"),
        (b'{"version": 9}', "version 9.*simulate again"),
    ],
)
def test_other_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        documents.read(data)


def test_a_curve_keeps_its_ends_and_its_tail() -> None:
    points = series.cumulative([float(each) for each in range(10_000)])
    assert points[0] == (0.0, 0.0001)
    assert points[-1] == (9999.0, 1.0)
    assert len(points) <= series.CURVE_POINTS
    assert sum(share > 0.9 for _, share in points) >= series.CURVE_POINTS / 2 - 1


def test_a_stepped_line_keeps_peaks_between_its_columns() -> None:
    points = series.stepped([(0.0, 1), (4.51, 9), (4.52, 2), (7.0, 0)], 10.0, 10)
    assert [value for _, value in points] == [1, 1, 1, 1, 9, 2, 2, 2, 0, 0]


def test_a_timeline_shows_what_took_most_of_each_column() -> None:
    activities = [
        Activity("mixed-0", "prefill", 0.0, 4.0, "long"),
        Activity("mixed-0", "prefill", 4.0, 4.4, "short"),
        Activity("mixed-0", "prefill", 4.4, 6.0, "other"),
        Activity("mixed-1", "decode", 2.0, 5.0, sequences=8.0),
        Activity("mixed-1", "lost", 8.0, 10.0),
    ]
    run = run_of([], activities=activities, stopped_s=10.0)
    found = series.timeline(run, 5)
    assert (
        found["mixed-0"]
        == [
            series.Segment(0, 2, "long", 0.0, False),
            series.Segment(2, 1, "other", 0.0, False),
            series.Segment(3, 1, "", 0.0, True),
        ][:2]
    )
    assert found["mixed-1"] == [
        series.Segment(1, 1, "", 8.0, False),
        series.Segment(2, 1, "", 4.0, False),
        series.Segment(4, 1, "", 0.0, True),
    ]


def test_the_detailed_rate_is_the_highest_that_is_borne() -> None:
    runs = [queued(load, rate=load) for load in (0.3, 0.6, 2.5)]
    summaries = summaries_of(runs)
    assert summaries[2].verdict.state == "overloaded"
    assert series.at_one_rate(summaries) == [1]
    assert series.at_one_rate(summaries[2:]) == [0]
    assert series.at_one_rate(summaries, 0.3) == [0]


def test_a_line_chart_draws_its_points_to_scale() -> None:
    x = charts.Axis("x", low=0.0, high=10.0)
    y = charts.Axis("y", low=0.0, high=1.0)
    found = charts.line_chart([charts.Line("<a>", [(0.0, 0.0), (10.0, 1.0)], 0)], x, y)
    left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
    right, top = charts.WIDTH - charts.RIGHT, charts.TOP
    assert f"M{left}.0 {bottom}.0L{right}.0 {top}.0" in found
    assert "<title>&lt;a&gt;</title>" in found
    assert "nothing to draw" in charts.line_chart([], x, y)


def test_plots_are_written(tmp_path: Path) -> None:
    runs = [queued(load, policy=name, count=60) for load in (0.3, 0.9) for name in ("a", HOSTILE)]
    made = plots.draw(runs, summaries_of(runs), tmp_path / "new")
    assert {each.name for each in made} == {
        "latencies.png",
        "bytes.png",
        "rates.png",
        "timeline-1.png",
        "timeline-2.png",
    }
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in made)


@pytest.mark.parametrize("run", NOTHING, ids=["none", "one", "all failed"])
def test_small_runs_have_every_report(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Page(page_of([run, run]))
    assert len(json.loads(found.data["record-data"])["requests"]) == len(run.outcomes)
    assert all(each.exists() for each in plots.draw([run, run], summaries_of([run, run]), tmp_path))
    assert "fcfs (2)" in shown(table.tables_of(summaries_of([run, run]), 200), capsys)
    assert "fcfs on 2 x A100" in shown(table.tables_of(summaries_of([run]), 200), capsys)


def hostile_run() -> Run:
    """A run all of whose names are hostile."""
    requests = [
        outcome(
            f"{number}{HOSTILE}",
            number,
            session=HOSTILE,
            owner=HOSTILE,
            group=(HOSTILE,),
            error=HOSTILE * (number == 1),
            delays=[Delay(HOSTILE, number, number + 0.5)],
            sent_bytes={HOSTILE: 1.0},
        )
        for number in range(3)
    ]
    run = run_of(requests, policy=HOSTILE, profile=HOSTILE)
    run.cluster = run.workload = run.model = HOSTILE
    run.shards = (HOSTILE,)
    run.activities = [Activity(HOSTILE, "prefill", 0.0, 1.0, HOSTILE)]
    return run


def test_hostile_names_are_text_on_the_page() -> None:
    text = page_of([hostile_run()], title=HOSTILE)
    found = Page(text)
    assert list(dict.fromkeys(found.scripts)) == ["timeline-data", "record-data", "code"]
    assert text.count("<script") == text.count("</script") == 3
    assert "alert" not in found.data["code"]
    assert HOSTILE in found.texts
    records = json.loads(found.data["record-data"])
    assert records["requests"][0][0] == f"0{HOSTILE}"
    assert records["causes"] == records["kinds"] == [HOSTILE]


def test_hostile_names_are_text_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    run = hostile_run()
    assert HOSTILE in shown(table.tables_of(summaries_of([run]), 200), capsys)
    assert HOSTILE in shown(table.tables_of(summaries_of([run, run]), 200), capsys)
    assert HOSTILE in shown(table.comparison_of(compare(run, run)), capsys)


def test_the_page_needs_nothing_else() -> None:
    text = page_of([queued(0.5, count=60)])
    found = Page(text)
    assert not found.links
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|innerHTML", text)


def test_the_page_has_the_rates_of_several_runs_only() -> None:
    runs = [queued(load, policy=name) for load in (0.3, 0.9) for name in ("a", "b")]
    assert "<h2>Rates</h2>" in page_of(runs)
    assert "<h2>Rates</h2>" not in page_of(runs[:2])
    shown_runs = json.loads(Page(page_of(runs, rate=runs[0].rate)).data["record-data"])["runs"]
    assert shown_runs == [f"a, {runs[0].rate:g}/s", f"b, {runs[0].rate:g}/s"]


def test_a_large_page_stays_small() -> None:
    runs = [queued(0.9, count=12_000, noise=noise) for noise in (1, 2, 3)]
    assert len(page_of(runs).encode()) < 5_000_000


def test_of_too_many_requests_the_worst_are_listed() -> None:
    requests = [outcome(str(i), i, 1.0) for i in range(200)]
    requests[50] = outcome("slow", 50, 90.0)
    requests[150] = outcome("failed", 150, None, error="no room")
    found = records_of([run_of(requests)], ["x"], 100, most=20)
    names = [each[0] for each in found.requests]
    assert len(names) == 20
    assert {"slow", "failed"} <= set(names)
    assert found.total == 200
    arrivals = [each[2] for each in found.requests]
    assert arrivals == sorted(arrivals)


STUB = """
const fs = require("fs"), [data, code] = JSON.parse(fs.readFileSync(0, "utf8"));
const elements = {};
const element = () => ({
  children: [], style: {}, clientWidth: 600, value: "", textContent: "",
  append(...items) { this.children.push(...items); },
  replaceChildren(...items) { this.children = items; },
  setAttribute() {}, addEventListener() {},
  getContext: () => new Proxy({}, { get: () => () => {}, set: () => true }),
});
const find = (id) => elements[id] ??= Object.assign(element(), { textContent: data[id] || "" });
globalThis.document = {
  getElementById: find, querySelector: find, createElement: element, documentElement: {},
};
globalThis.getComputedStyle = () => ({ getPropertyValue: () => "red" });
globalThis.addEventListener = () => {};
globalThis.matchMedia = () => ({ addEventListener() {} });
globalThis.devicePixelRatio = 1;
const words = (node) => typeof node === "string" ? [node]
  : [node.textContent, ...node.children.flatMap(words)].filter(Boolean);
eval(code + `
const listed = find("#list tbody").children.map((row) => row.children[0].textContent);
console.log(JSON.stringify([listed, words(detail(chosen()[0]))]));`);
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_script_lists_requests_and_says_why_they_waited() -> None:
    here = outcome(
        "a",
        0.0,
        12.0,
        delays=[Delay("turn", 0.0, 10.0)],
        group=("mixed-1",),
        sent_bytes={"kv": 2048},
    )
    there = outcome("a", 0.0, 3.0, delays=[Delay("turn", 0.0, 2.0)], degree=4)
    quick = outcome("b", 1.0, 1.0)
    found = Page(page_of([run_of([quick, here]), run_of([quick, there], policy="lars")]))
    done = subprocess.run(
        ["node", "-e", STUB],
        input=json.dumps([found.data, found.data["code"]]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    listed, detail = json.loads(done.stdout)
    assert listed == ["a", "b"]  # by slowdown
    assert "10.0 s waiting for its turn" in detail
    assert "kv: 2.0 KiB" in detail
    assert any("prefill on mixed-1 (degree 1)" in each for each in detail)
    told = shift_of(here, there, "lars").why
    assert told == "8 s less waiting for its turn; 1 s less computing; degree 4 instead of 1"
    assert detail[-1].endswith(
        "8.00 s less waiting for its turn; 1.00 s less computing; degree 4 instead of 1"
    )
