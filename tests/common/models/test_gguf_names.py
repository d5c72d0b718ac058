"""Names of GGUF files: quantisations, parts, and which files of a repository are meant."""

import pytest

from sps2.common.errors import Invalid
from sps2.common.models.gguf_names import part_names, quantisation, select, stem

FILES = [
    "README.md",
    "Model-Q4_K_M.gguf",
    "Model-Q4_K_S.gguf",
    "Q8_0/Model-Q8_0-00002-of-00002.gguf",
    "Q8_0/Model-Q8_0-00001-of-00002.gguf",
    "mmproj-Model-F16.gguf",
    "Model.imatrix.gguf",
]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-IQ4_XS-00001-of-00003.gguf", "IQ4_XS"),
        ("Q8_0.gguf", "Q8_0"),
        ("tiny-bf16.gguf", "BF16"),
        ("model.gguf", ""),
        ("Qwen3-8B.gguf", ""),
    ],
)
def test_quantisations(name: str, kind: str) -> None:
    assert quantisation(name) == kind


def test_parts() -> None:
    assert part_names("m.gguf") == ["m.gguf"]
    parts = ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]
    assert part_names(parts[1]) == parts
    assert {stem(part) for part in parts} == {"a-Q8_0"}


def test_the_files_of_a_quantisation() -> None:
    assert select(FILES, "Q4_K_M") == ["Model-Q4_K_M.gguf"]
    assert select(FILES, "q8_0") == [
        "Q8_0/Model-Q8_0-00001-of-00002.gguf",
        "Q8_0/Model-Q8_0-00002-of-00002.gguf",
    ]
    assert select(FILES[:2], None) == ["Model-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (FILES, "Q4_K", "no GGUF file of Q4_K, only Q4_K_M, Q4_K_S, Q8_0$"),
        (FILES, None, "several quantisations; add one .* Q4_K_M, Q4_K_S, Q8_0$"),
        (FILES[:4], "Q8_0", r"lacks Q8_0/Model-Q8_0-00001-of-00002\.gguf, of 2 parts"),
        ([*FILES, "old/Model-Q4_K_M.gguf"], "Q4_K_M", "several models in Q4_K_M: Model-"),
        (["a.safetensors"], "Q8_0", "no GGUF file"),
    ],
)
def test_what_cannot_be_chosen(names: list[str], kind: str | None, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        select(names, kind)
