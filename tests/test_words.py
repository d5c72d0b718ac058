"""Words that were retired: the glossary in docs/architecture.md has those in use."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
RETIRED = (
    r"\bstretch(es)?\b",
    r"\bbeat_s\b|\bmissed_beats\b|(?<!heart)\bbeats?\b(?! torch)",
    r"\bwish(es)?\b|\bWish\b",
    r"\b[Dd]ealt\b|\bseats\b|\bSeats\b",
    r"\bby turns\b",
    r"(?<![\w-])--any\b|`any` shard",
    r"\bsharing\.wire\b|`wire`|\bwire=|\"wire\"",
    r"\b[Pp]orter\b|\btakers\b",
)
PAST = re.compile(
    r"^(CHANGELOG\.md|benchmarks/results/|docs/benchmarks\.md|docs/figures\.py|tests/test_words\.py)"
)
"""What was measured and released under its old name."""
TEXT = re.compile(r"\.(py|md|toml|ya?ml|json|cpp|inc|html|sh)$")


def test_no_retired_word_is_used() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = [each for each in listed.stdout.splitlines() if TEXT.search(each)]
    used = [
        f"{name}:{number}: {line.strip()}"
        for name in names
        if not PAST.search(name)
        for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), 1)
        if any(re.search(word, line) for word in RETIRED)
    ]
    assert names
    assert not used, "\n".join(used)
