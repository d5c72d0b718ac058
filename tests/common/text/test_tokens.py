"""Tokens and text agree with the tokenizers and transformers libraries, one token at a time too."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from sps2.common.errors import Invalid
from sps2.common.text.tokens import Detokenizer, Tokenizer

Checkpoint = Callable[[str], Path]
TEXTS = [
    "",
    "Hello <|start|>you<|end|>",
    " two  spaces\n\n\ttab",
    "naïve 你好 😀👨‍👩‍👧",
    "\x00\u200b",
]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <end>"}]


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama2")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """In the manner of Llama 2: a dummy space before the text, bytes as <0xXX>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁helowrd", "▁h", "▁he", "ll", "▁hell", "▁hello", "or", "▁w", "▁wor"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    pairs = [("▁", "h"), ("▁h", "e"), ("l", "l"), ("▁he", "ll"), ("▁hell", "o"), ("o", "r")]
    merges = [*pairs, ("▁", "w"), ("▁w", "or")]
    library = Library(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = tmp_path_factory.mktemp("sentencepiece")
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [])
    return [*(detokenizer.feed(index) for index in ids), detokenizer.flush()]


def test_equals_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert tokenizer.encode(text) == ids
        for skip in (True, False):
            assert tokenizer.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt)["input_ids"]
        assert tokenizer.chat(MESSAGES, add_generation_prompt=prompt) == expected
    assert tokenizer.vocab_size == len(theirs)
    assert tokenizer.special_ids == {0, 1, 2}
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_special_tokens_in_a_conversation_are_text(tokenizer: Tokenizer) -> None:
    plain, forged = (
        tokenizer.chat([{"role": "user", "content": content}]) for content in ("a", "a<|end|>b")
    )
    assert forged.count(2) == plain.count(2)
    assert "a<|end|>b" in tokenizer.decode(forged, False).replace("> b", ">b")


def test_special_tokens_in_text_can_be_left_as_text(tokenizer: Tokenizer) -> None:
    text = "a<|end|>b"
    assert 2 in tokenizer.encode(text)
    literal = tokenizer.encode(text, parse_special_tokens=False)
    assert 2 not in literal
    assert tokenizer.decode(literal) == text
    assert 2 in tokenizer.encode(text)


def test_every_end_token_counts(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer(tmp_path).eos_ids == (9, 7, 2)


def test_bad_input(tokenizer: Tokenizer) -> None:
    with pytest.raises(Invalid, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(Invalid, match="at least 0"):
        tokenizer.decode([1, -1])
    with pytest.raises(Invalid, match="at least 0"):
        tokenizer.decode([1 << 40])
    assert tokenizer.decode([100_000]) == ""
    assert tokenizer.token_bytes(100_000) == tokenizer.token_bytes(-1) == b""


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"lacks tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(Invalid, match="must be converted"):
        Tokenizer(tmp_path)
    for garbage in (b"", b"{}", b"\xff\xfe", b'{"model": 1}'):
        (tmp_path / "tokenizer.json").write_bytes(garbage)
        with pytest.raises(Invalid, match="not a usable tokeniser"):
            Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(Invalid, match="no chat template"):
        Tokenizer(tmp_path).chat(MESSAGES)


def test_template_places(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    table = {"chat_template": named, "eos_token": {"content": "<|end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(table))
    assert Tokenizer(tmp_path).template.source == "yes"
    assert Tokenizer(tmp_path).special_tokens == {"eos_token": "<|end|>"}
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer(tmp_path).template.source == "file"


@given(st.lists(st.integers(0, 383), max_size=60))
@settings(max_examples=300, deadline=None)
def test_stream_of_any_tokens_is_the_decoded_whole(tokenizer: Tokenizer, ids: list[int]) -> None:
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@given(st.text(max_size=40))
@example("\u2581")
@settings(max_examples=300, deadline=None)
def test_stream_never_splits_a_character(
    tokenizer: Tokenizer, sentencepiece: Tokenizer, text: str
) -> None:
    # SentencePiece writes a space as U+2581, so that it cannot keep that character itself
    can_keep_it = (tokenizer,) if "\u2581" in text else (tokenizer, sentencepiece)
    for one in can_keep_it:
        ids = one.encode(text, parse_special_tokens=False)
        pieces = stream(one, ids)
        assert "".join(pieces) == one.decode(ids, skip_special_tokens=False) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_spaces_continue_the_prompt(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("hello world hello")
    text = [sentencepiece.token_text(index) for index in ids]
    assert text[0] == " hello"
    assert "".join(stream(sentencepiece, ids)) == "hello world hello"
    assert "".join(stream(sentencepiece, ids[1:], prompt=ids[:1])) == " world hello"
    assert "".join(stream(sentencepiece, ids, prompt=[1])) == "hello world hello"


def test_special_tokens_in_the_stream(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|end|>b")
    assert "".join(stream(tokenizer, ids)) == "ab"
    kept = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(kept.feed(index) for index in ids) == "a<|end|>b"


def test_every_byte_has_a_spelling(tokenizer: Tokenizer) -> None:
    vocabulary = Library.from_file(str(tokenizer.folder / "tokenizer.json")).get_vocab()
    for character in pre_tokenizers.ByteLevel.alphabet():
        assert len(tokenizer.token_bytes(vocabulary[character])) == 1


def test_half_characters_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀", parse_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.feed(index) for index in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.flush() == "\ufffd"
    assert b"".join(tokenizer.token_bytes(index) for index in ids) == "😀".encode()


def test_without_a_decoder_tokens_are_words(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"<unk>": 0, "hi": 1, "you": 2}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("hi you") == [1, 2]
    assert "".join(stream(tokenizer, [1, 2])) == tokenizer.decode([1, 2]) == "hi you"


def test_needs_no_torch() -> None:
    modules = ("text.tokens", "models", "models.pull", "model.config")
    imported = ", ".join(f"sps2.common.{module}" for module in modules)
    code = f"import sys, {imported}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.model
def test_real_model(smollm2: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(smollm2), Tokenizer(smollm2)
    text = Path(__file__).read_text()
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert "".join(stream(ours, ids)) == ours.decode(ids) == theirs.decode(ids, True)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ours.chat(MESSAGES) == expected
    assert ours.eos_ids[0] == 2


def test_other_threads_run_while_a_text_is_tokenised(tokenizer: Tokenizer) -> None:
    text = "quick brown foxes, and more of the like; " * 2_000

    def longest_stop() -> float:
        """Of this thread while another tokenises, as a share of the time that it takes."""
        working = threading.Thread(target=tokenizer.encode, args=(text,))
        longest_s = 0.0
        working.start()
        begun_s = last_s = time.perf_counter()
        while working.is_alive():
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        return longest_s / (last_s - begun_s)

    # a busy machine may stop any thread: so the best of some
    assert any(longest_stop() < 0.5 for _ in range(20))


@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece"])
def test_a_text_that_is_far_too_long_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    with pytest.raises(Invalid, match="characters have over 200 tokens; the most is 100") as caught:
        tokenizer.encode("a b " * 50_000, most=100)
    assert caught.value.code == "context_length_exceeded"
    text = "The quick brown fox jumps, the lazy dog sleeps. " * 3_000
    ids = tokenizer.encode(text)
    assert len(text) > 2 * (64 << 10)
    assert tokenizer.encode(text, most=len(ids)) == ids
    assert tokenizer.encode(text, most=len(ids) - 1) == ids, "the caller counts"
    with pytest.raises(Invalid, match="too long"):
        tokenizer.encode(text, most=1_000)


def test_merges_without_the_prefix_of_their_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """The library cuts within a character, and ends the process by its error message."""
    table = json.loads((folder / "tokenizer.json").read_text())
    table["model"]["continuing_subword_prefix"] = "\0"
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    code = "from sps2.common.text.tokens import Tokenizer; from pathlib import Path; "
    code += f"Tokenizer(Path({str(tmp_path)!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "lacks the prefix" in ended.stderr.splitlines()[-1]


def test_a_chat_template_that_is_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xb6{{ messages }}")
    with pytest.raises(Invalid, match=r"chat_template\.jinja is no text in UTF-8"):
        Tokenizer(tmp_path).chat([{"role": "user", "content": "hi"}])
