"""The figures of docs/benchmarks.md and README.md are those of the records."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FIGURES = runpy.run_path(str(ROOT / "docs" / "figures.py"))
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_page_is_as_the_records_are() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert FIGURES["written"](page) == page, "run `python docs/figures.py`"


@pytest.mark.parametrize("sentence", FIGURES["quoted"]())
def test_the_readme_quotes_the_records(sentence: str) -> None:
    assert sentence in README


def test_a_page_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match="figures: KIND"):
        FIGURES["written"]("# Benchmarks\n")
