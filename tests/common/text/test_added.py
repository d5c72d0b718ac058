"""Tokens that other files of a model add are known as transformers knows them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sps2.common.errors import Invalid
from sps2.common.text.added import MAP, MORE, TABLE
from sps2.common.text.tokens import Tokenizer

Checkpoint = Callable[[str], Path]
END = "<|im_end|>"
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("llama2"), tmp_path / "model"))


def change(path: Path, **changes: Any) -> None:
    """Keys of a JSON file; `...` takes one away."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table = {key: value for key, value in (table | changes).items() if value is not ...}
    path.write_text(json.dumps(table), encoding="utf-8")


@pytest.mark.parametrize("file", [TABLE, MORE])
def test_an_end_that_tokenizer_json_lacks(folder: Path, file: str) -> None:
    size = Tokenizer(folder).vocab_size
    change(folder / "config.json", vocab_size=size + 1)
    change(folder / TABLE, eos_token=END)
    if file == TABLE:
        change(folder / TABLE, added_tokens_decoder={str(size): {"content": END, "special": True}})
    else:
        change(folder / MORE, **{END: size})
    tokenizer, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = f"a{END}b<|end|>"
    assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.encode(END) == [size]
    assert tokenizer.eos_ids == (2, size)
    assert size in tokenizer.special_ids
    assert tokenizer.decode([size, 70]) == theirs.decode([size, 70], skip_special_tokens=True)
    literal = tokenizer.encode(text, parse_special_tokens=False)
    assert size not in literal
    assert tokenizer.decode(literal) == text


def test_a_plain_token_that_is_declared_special(folder: Path) -> None:
    """Added, but not special in tokenizer.json: the configuration has the last word."""
    library = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in library["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(library), encoding="utf-8")
    declared = {"2": FLAGS | {"content": "<|end|>", "special": True}}
    change(folder / TABLE, added_tokens_decoder=declared)
    tokenizer = Tokenizer(folder)
    assert 2 in tokenizer.special_ids
    assert tokenizer.encode("a<|end|>")[-1] == 2


@pytest.mark.parametrize("index", [9999, 384])
def test_a_token_without_a_row_is_left_out(
    folder: Path, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    size = Tokenizer(folder).vocab_size
    assert size == 384
    change(folder / "config.json", vocab_size=size)
    change(folder / TABLE, added_tokens_decoder={str(index): {"content": END, "special": True}})
    assert max(Tokenizer(folder).encode(f"a{END}")) < size
    assert f"{END!r} cannot be {index}" in caplog.text


def test_names_from_special_tokens_map(folder: Path) -> None:
    change(folder / TABLE, bos_token=..., eos_token=..., pad_token=...)
    names = {"bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}}
    change(folder / MAP, **names)
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    change(folder / TABLE, chat_template=template)
    tokenizer, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.chat(messages) == theirs.apply_chat_template(messages)["input_ids"]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    change(folder / TABLE, eos_token="<|pad|>")
    assert Tokenizer(folder).special_tokens["eos_token"] == "<|pad|>"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (TABLE, {"eos_token": 2}),
        (TABLE, {"eos_token": {"id": 2}, "bos_token": {"content": 5}}),
        (TABLE, {"added_tokens_decoder": {"x": {"content": "a"}}}),
        (TABLE, {"added_tokens_decoder": {"384": "a"}}),
        (TABLE, {"added_tokens_decoder": [1]}),
        (MORE, {"a": "b"}),
        (MAP, {"eos_token": ["a"]}),
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("config.json", {"eos_token_id": {"a": 1}}),
    ],
)
def test_what_is_no_token_is_refused_with_its_file(
    folder: Path, file: str, changes: dict[str, Any]
) -> None:
    change(folder / file, **changes)
    with pytest.raises(Invalid, match=file.replace(".", r"\.")):
        assert Tokenizer(folder).eos_ids


@pytest.mark.parametrize("template", [5, {"a": 1}, [1], [{"name": "default", "template": 3}]])
def test_a_template_that_is_no_text_is_refused(folder: Path, template: object) -> None:
    change(folder / TABLE, chat_template=template)
    with pytest.raises(Invalid, match="chat template"):
        Tokenizer(folder).chat([{"role": "user", "content": "hi"}])
