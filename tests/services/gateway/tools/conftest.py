"""Tokenisers of bytes, with and without tokens for what begins calls and thoughts."""

import json
import shutil

import pytest

from sps2.common.text.tokens import Tokenizer

TAGS = ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|python_tag|>")


@pytest.fixture(scope="session")
def tokenizer(folder):
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def special(folder, tmp_path_factory):
    """A tokeniser in which what begins calls and thoughts are special tokens."""
    path = tmp_path_factory.mktemp("special") / "tiny"
    shutil.copytree(folder, path)
    table = json.loads((path / "tokenizer.json").read_text("utf-8"))
    for place, text in enumerate(TAGS):
        token = {**table["added_tokens"][0], "id": 258 + place, "content": text}
        table["added_tokens"].append(token)
    (path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    config = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(
        json.dumps(config | {"vocab_size": 258 + len(TAGS)}), encoding="utf-8"
    )
    return Tokenizer(path)
