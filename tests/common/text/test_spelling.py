"""Tokens one by one spell what the library decodes at once, under every decoder; or are refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models
from tokenizers import Tokenizer as Library

from sps2.common.errors import Invalid
from sps2.common.text.spelling import spelling
from sps2.common.text.tokens import Detokenizer, Tokenizer

WORDS = [
    "The",
    "Ġlazy",
    "▁dog",
    "▁",
    "Ã",
    "©",
    "<0x0A>",
    "<0xC3>",
    "<0xA9>",
    "é",
    "a b",
    "##ed",
    "|",
]
SENTENCEPIECE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIP = decoders.Strip(" ", 1, 0)
TAKEN: dict[str, decoders.Decoder | None] = {
    "none": None,
    "bytes": decoders.ByteLevel(),
    "bytes in a sequence": decoders.Sequence([decoders.ByteLevel()]),
    "bytes, fused": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    "bytes, stripped": decoders.Sequence([decoders.ByteLevel(), STRIP]),
    "bytes, deep": decoders.Sequence([decoders.Sequence([decoders.ByteLevel()])]),
    "llama": decoders.Sequence([*SENTENCEPIECE, STRIP]),
    "llama, no prefix": decoders.Sequence(SENTENCEPIECE),
    "metaspace": decoders.Metaspace(),
    "metaspace, never": decoders.Metaspace(prepend_scheme="never"),
    "metaspace, fused": decoders.Sequence([decoders.Metaspace(), decoders.Fuse()]),
    "fuse": decoders.Fuse(),
    "fallback": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
}
REFUSED: dict[str, decoders.Decoder] = {
    "WordPiece": decoders.WordPiece(),
    "BPEDecoder": decoders.BPEDecoder(),
    "CTC": decoders.CTC(),
    "Replace with pattern": decoders.Replace(Regex("x+"), " "),
    "Replace with content": decoders.Replace("▁", "_"),
    "Metaspace with replacement": decoders.Metaspace(replacement="_"),
    "Strip with stop": decoders.Strip(" ", 0, 1),
    "strips 2 spaces": decoders.Strip(" ", 2, 0),
    "Replace, ByteLevel": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteLevel()]),
    "Fuse, ByteLevel": decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()]),
    "Strip, Replace": decoders.Sequence([STRIP, decoders.Replace("▁", " ")]),
}


def saved(folder: Path, decoder: decoders.Decoder | None) -> Tokenizer:
    library = Library(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "a b"))
    if decoder is not None:
        library.decoder = decoder
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.feed, ids)) + detokenizer.flush()


@pytest.mark.parametrize("kind", TAKEN)
def test_a_stream_is_what_is_decoded_at_once(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    tokenizer = saved(tmp_path_factory.mktemp("model"), TAKEN[kind])

    @given(st.lists(st.integers(0, len(WORDS) - 1), max_size=8))
    @settings(max_examples=60, deadline=None)
    def check(ids: list[int]) -> None:
        whole = tokenizer.decode(ids)
        if "\ufffd" not in whole:  # how many stand for broken bytes is each library's own
            assert streamed(tokenizer, ids) == whole

    check()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_streamed_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Invalid, match=r"tokenizer\.json.*decoder") as caught:
        saved(tmp_path, REFUSED[kind])
    assert kind in str(caught.value)


def test_a_decoder_of_the_future_is_refused() -> None:
    with pytest.raises(Invalid, match="Quantum"):
        spelling(json.loads('{"type": "Sequence", "decoders": [{"type": "Quantum"}]}'))
