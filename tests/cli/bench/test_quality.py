"""`spsctl bench quality` from the command line."""

from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from sps2.cli.bench.results import Found, Measured, Quality, Report, Traffic
from sps2.cli.bench.table import tables_of
from sps2.cli.main import app

SETTINGS = "exact,int8,csa:drop=4,fine=2,heldout=1,star"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {number} says nothing.\n" for number in range(500)))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", "quality", *map(str, arguments)])


def test_everything_is_reported(folder: Path, document: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    lengths = ("--tokens", 1600, "--sp-degree", "2,3", "--settings", SETTINGS, "--questions", 1)
    result = run("--model", folder, "--documents", document, *lengths, "--out", file)
    assert result.exit_code == 0, result.output
    assert "1600 tokens, SP degree 3" in result.stdout
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    assert report.documents == ("text.txt",)
    assert len(report.cases) == len(report.pooled) == 8
    for case, pooled in zip(report.cases, report.pooled, strict=True):
        assert case.document
        assert case.whole == pooled.whole
        assert sum(case.spans) == 1600
        assert [found.digits for found in case.needles] == [3]
    exact, int8, csa, _ = report.cases[:4]
    assert abs(exact.whole.kl) < 1e-6 < int8.whole.kl < csa.whole.kl
    assert exact.traffic.total == exact.traffic.causal < exact.traffic.ring
    assert 0.5 < int8.traffic.total / int8.traffic.causal < 0.7
    assert 0 < csa.kept_blocks < csa.blocks
    assert csa.lost > 0


def test_pictures(folder: Path, document: Path, tmp_path: Path) -> None:
    lengths = ("--tokens", 1600, "--sp-degree", 2, "--settings", "int8", "--questions", 1)
    result = run("--model", folder, "--documents", document, *lengths, "--plot", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"quality-2.png", "needles-2.png"}


def test_pictures_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sps2.cli.bench.quality.find_spec", lambda name: None)
    result = run("--plot", tmp_path)
    assert result.exit_code == 1
    assert "sps2[bench]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--settings", "none"], "no setting"),
        (["--tokens", "many"], "--tokens"),
        (["--tokens", "100"], "too few"),
        (["--tokens", "9000"], "4096"),
        (["--dtype", "int8"], "--dtype"),
        (["--spans", "odd"], "--spans"),
        (["--sp-degree", "0"], "--sp-degree"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], said: str) -> None:
    result = run("--model", folder, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_document_that_is_not_there(folder: Path) -> None:
    result = run("--model", folder, "--documents", "no-such-file")
    assert result.exit_code == 1
    assert "no-such-file" in result.stderr


def report() -> Report:
    quality = Quality(6144, 12.3, 0.0123, 0.0045, 0.00123, 0.0001, 0.98765)
    traffic = Traffic({"kv": 123}, 456, 789)
    found = (Found(0.5, 9, 9, 8),)
    pooled = [
        Measured(setting, 8000, 4, "", quality, quality, traffic, (), 9, 3, 0.0123, 1, 2, found)
        for setting in ("exact", "csa:drop=.25,fine=2", "strided:budget=.25")
    ]
    return Report("0", "tiny", "float32", ("a", "b"), (), tuple(pooled))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    console = Console(width=width, file=StringIO())
    for block in tables_of(report(), width):
        console.print(block)
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    settings = ("exact", "csa:drop=.25,fine=2", "strided:budget=.25")
    rows = [line for line in lines if line.startswith(settings)]
    assert len(rows) == (3 if width == 120 else 6)
    text = " ".join(rows)
    for cell in ("+1.23 ± 0.45", "0.00123", "98.77", "8/9", "33.3", "1.23", "0.270", "0.156"):
        assert text.count(f" {cell}") >= 3
    assert "…" not in text
