"""docs/configuration.md is what the generator makes, and what it says of flags is true."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sps2.cli.effective import effective
from sps2.cli.main import app
from sps2.cli.reference import flags_by_key, reference
from sps2.common import config
from sps2.common.config import ENVIRONMENT, Cluster
from sps2.common.config.text import keys_of, tables_of

ROOT = Path(__file__).parent.parent.parent
VALUES = {
    "served_model_name": ("gpt-4o", "mini"),
    "name": "other",
    "device": "auto",
    "dtype": "float32",
    "quantize": "int8",
    "host": "localhost",
    "prefill": 5,
    "decode": 6,
    "mixed": 2,
    "tp": 2,
    "pp": 2,
    "decode_tp": 2,
    "threads": 3,
    "transport": "tcp",
    "attention": "fast",
    "port": 9000,
    "policy": "fcfs",
    "access_log": "all",
    "gateways": 3,
    "kv_disk": "/var/cache/kv",
    "kv_disk_gib": 2.5,
}
"""For each flag that sets a key, a value for it; `model` and `keys` have paths of the test."""


def test_the_page_is_what_the_generator_makes() -> None:
    printed = CliRunner().invoke(app, ["config", "--reference"]).stdout
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == printed, "run `spsctl config --reference > docs/configuration.md`"


def test_every_key_and_variable_is_there_with_its_meaning() -> None:
    page = reference()
    for name, section in tables_of(Cluster()):
        for key in keys_of(section):
            assert key.meaning, f"[{name}] {key.name} has no description"
            assert f"| `{key.name}` | " in page
            assert key.environment in {"", *ENVIRONMENT}
    sources = "".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    for name in ("common/config/cluster.py", "common/places.py", "cli/target.py"):
        sources += (ROOT / name).read_text(encoding="utf-8")
    for variable in ENVIRONMENT:
        assert f"| `{variable}` | " in page
        assert re.search(rf'environ.get\("{variable}"|envvar="{variable}"', sources)


def test_a_flag_sets_the_key_that_it_is_said_to(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    made = CliRunner().invoke(app, ["keys", "init", "--keys", str(tmp_path / "keys")])
    assert made.exit_code == 0
    model = str(checkpoint("llama3"))
    values = VALUES | {"model": model, "keys": str(tmp_path / "keys")}
    for (table, key), flag in flags_by_key().items():
        value = values.pop(flag.removeprefix("--").replace("-", "_"))
        cluster = effective(None, **({"model": model} | {key: value}))
        assert getattr(dict(tables_of(cluster))[table], key) == value, flag
    assert not values


def test_the_environment_sets_the_key_that_it_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, section in tables_of(Cluster()):
        for key in keys_of(section):
            if key.environment:
                monkeypatch.setenv(key.environment, "elsewhere")
                assert getattr(dict(tables_of(config.load()))[name], key.name) == "elsewhere"
