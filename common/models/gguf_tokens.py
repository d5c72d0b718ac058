"""Rebuilds the tokeniser of a GGUF file as a Hugging Face tokenizer.json."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sps2.common.errors import Invalid

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF

ENDS = {
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<EOT>", "_<EOT>", "<end_of_utterance>"),
}
"""Tokens that always end an answer, besides those that a file names: llama.cpp's list."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_LLAMA3_LIKE = ("llama3", "llama-v3", "llama-bpe")


def build(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokeniser that `tokenizer.ggml.*` of a GGUF file describes.

    Raises:
        Invalid: its kind or pre-tokeniser is not supported, or it is inconsistent.
        LookupError: something is missing.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise Invalid(f"tokenizer {kind!r} of a GGUF file is not supported; supported: gpt2, llama")
    try:
        tokenizer = _byte_level(fields) if kind == "gpt2" else _sentencepiece(fields)
        _add_marked_tokens(tokenizer, fields)
        _add_template(tokenizer, fields)
    except (Invalid, LookupError):
        raise
    except Exception as error:  # the library raises bare Exception
        raise Invalid(f"the tokenizer of the GGUF file is not sound: {error}") from error
    return tokenizer


def ends(fields: Mapping[str, Any]) -> list[int]:
    """Ids of the control tokens that are in `ENDS`."""
    types = fields.get("tokenizer.ggml.token_type") or []
    pairs = zip(fields["tokenizer.ggml.tokens"], types, strict=False)
    return [index for index, (token, kind) in enumerate(pairs) if kind == CONTROL and token in ENDS]


def _byte_level(fields: Mapping[str, Any]) -> Tokenizer:
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise Invalid(
            f"pre-tokenizer {pre!r} of a GGUF file is not supported; "
            f"supported: {', '.join(sorted(_SPLITS))}"
        )
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=_byte_vocabulary(fields), merges=merges, ignore_merges=pre in _LLAMA3_LIKE)
    )
    split = _SPLITS[pre]
    steps: list[pre_tokenizers.PreTokenizer]
    if split is None or split == "digits":
        steps = [pre_tokenizers.Digits(individual_digits=True)] if split else []
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    else:
        steps = [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_vocabulary(fields: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary: plain tokens in the byte alphabet, marked ones as they appear in text."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    speller = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    marked = {token for token, _ in _marked(fields)}
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(fields["tokenizer.ggml.tokens"]):
        if not set(token) <= alphabet and token not in marked:
            token = "".join(piece for piece, _ in speller.pre_tokenize_str(token))
        vocabulary[token] = index
    return vocabulary


def _sentencepiece(fields: Mapping[str, Any]) -> Tokenizer:
    tokens = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_by_score(vocabulary, fields["tokenizer.ggml.scores"]),
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if prefix else steps
    )
    return tokenizer


def _merges_by_score(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a sentencepiece vocabulary implies: all ways to build a piece, best first."""
    found: list[tuple[float, int, int, int, int, tuple[str, str]]] = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                rank = (vocabulary[left], vocabulary[right])
                found.append((-scores[index], -len(left), -len(right), *rank, (left, right)))
    return [pair for *_, pair in sorted(found)]


def _marked(fields: Mapping[str, Any]) -> list[tuple[str, int]]:
    types = fields.get("tokenizer.ggml.token_type") or []
    pairs = zip(fields["tokenizer.ggml.tokens"], types, strict=False)
    return [(token, kind) for token, kind in pairs if kind in (CONTROL, USER_DEFINED)]


def _add_marked_tokens(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    for token, kind in _marked(fields):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        else:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _add_template(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    """Add begin and end of sequence, if the file requires them."""
    sentencepiece = fields["tokenizer.ggml.model"] == "llama"
    begins = sentencepiece or fields.get("tokenizer.ggml.pre") in _LLAMA3_LIKE
    begins = fields.get("tokenizer.ggml.add_bos_token", begins)
    ends = fields.get("tokenizer.ggml.add_eos_token", False)
    tokens = fields["tokenizer.ggml.tokens"]
    bos = fields.get("tokenizer.ggml.bos_token_id") if begins else None
    eos = fields.get("tokenizer.ggml.eos_token_id") if ends else None
    used = [(tokens[index], index) for index in (bos, eos) if index is not None]
    if used:
        before = [tokens[bos]] if bos is not None else []
        after = [tokens[eos]] if eos is not None else []
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=used
        )
