"""generation_config.json: what a model recommends for requests that do not say."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from sps2.common.errors import Invalid
from sps2.common.model.generation import FILE, SamplingDefaults, sampling_defaults


def written(folder: Path, table: dict[str, Any]) -> SamplingDefaults:
    (folder / FILE).write_text(json.dumps(table), encoding="utf-8")
    return sampling_defaults(folder)


def test_a_model_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == SamplingDefaults()


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    theirs = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.05
    )
    theirs.save_pretrained(tmp_path)
    assert sampling_defaults(tmp_path) == SamplingDefaults(0.6, 0.9, 20, 0.1, 1.05)


def test_other_fields_and_nulls_are_left_open(tmp_path: Path) -> None:
    table = {"eos_token_id": [1, 2], "do_sample": False, "temperature": 1, "top_p": None}
    assert written(tmp_path, table) == SamplingDefaults(temperature=1.0)


def test_a_limit_of_new_tokens(tmp_path: Path) -> None:
    assert written(tmp_path, {"max_new_tokens": 2048}).max_new_tokens == 2048


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", 0.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(Invalid, match=rf"generation_config\.json .*{field}"):
        written(tmp_path, {field: value})
