"""Tokenisers of GGUF files encode as transformers' own conversion of the same file does."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from sps2.common.errors import Invalid
from sps2.common.models.gguf_tokens import build
from sps2.common.text.tokens import Tokenizer

TEXTS = [
    "Hello, world! It's 2024, and they'll pay 3.50 for 12345 things.",
    "a  b   c\n\n\nd\t\te \r\n f",
    " leading and trailing  ",
    "naïve café, 你好世界, привет, 😀👨‍👩‍👧",
    "def f(x):\n    return x + 1\n\n\nclass A: ...",
    "<|im_start|>user\nhi<|im_end|>",
    "\x00\x01 odd \u200b bytes",
    "",
]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES += [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "he",
    "ll",
    "hell",
    "hello",
    "▁hello",
    "or",
    "▁w",
]


def spm_fields() -> dict[str, Any]:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [float(-index) for index in range(len(PIECES))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentencepiece_equals_transformers(tmp_path: Path) -> None:
    fields = spm_fields()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores(fields["tokenizer.ggml.scores"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    ours = build(fields)
    for text in [*TEXTS, "hello world", "  hello", "hello </s> hello"]:
        assert ours.encode(text).ids == theirs.encode(text), text
    ids = ours.encode("hello wörld").ids
    assert ids[0] == 1
    assert ours.decode(ids) == "hello wörld"


def test_begin_of_sequence_is_the_files_choice() -> None:
    fields = spm_fields() | {"tokenizer.ggml.add_bos_token": False}
    assert build(fields).encode("hello").ids == [PIECES.index("▁hello")]
    fields |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert build(fields).encode("hello").ids == [1, PIECES.index("▁hello"), 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' .* gpt2, llama"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "viking"}, "'viking'.*smollm"),
    ],
)
def test_unsupported_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        build(spm_fields() | changes)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["Ġ", "Ġ12345", "Ċ", "Ċ", "a"]),
        ("smollm", ["ĠĠ", "1", "2", "3", "4", "5", "Ċ", "Ċ", "a"]),
        ("llama-bpe", ["Ġ", "Ġ", "123", "45", "ĊĊ", "a"]),
        ("qwen2", ["Ġ", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "a"]),
        ("tekken", ["Ġ", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "a"]),
    ],
)
def test_how_text_is_split_before_merging(pre: str, expected: list[str]) -> None:
    fields = spm_fields() | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    split = build(fields | {"tokenizer.ggml.merges": []}).pre_tokenizer
    assert split is not None
    assert [piece for piece, _ in split.pre_tokenize_str("  12345\n\na")] == expected


@pytest.mark.model
def test_real_model_equals_transformers(smollm2: Path) -> None:
    """`smollm` splits digits off first, which transformers' reading of GGUF leaves out: it makes
    two tokens of "\\n\\n" before a digit, where the model was trained on one."""
    theirs, ours = AutoTokenizer.from_pretrained(smollm2), Tokenizer(smollm2)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    for splitter, texts in ((plain, TEXTS), (digits, [*TEXTS, "list:\n\n1. one\n\n2.  22"])):
        theirs.backend_tokenizer.pre_tokenizer = splitter
        for text in texts:
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
