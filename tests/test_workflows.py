"""GitHub's workflows have the form that GitHub takes, and run what there is."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_well_formed_and_runs_what_there_is(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads the key `on` as a boolean
    jsonschema.validate(workflow, get_builtin_schema("vendor.github-workflows"))
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M)
    commands = re.findall(r"run: (.+)", text)
    assert commands
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets
        for script in re.findall(r"[\w./-]+\.py|\.ci/run", command):
            assert (ROOT / script).exists(), script
