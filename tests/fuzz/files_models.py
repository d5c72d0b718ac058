"""Models from outside: GGUF files, safetensors, and the JSON files beside them."""

import json
import random
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from sps2.common.errors import Invalid
from sps2.common.model.config import block_types, read
from sps2.common.model.generation import sampling_defaults
from sps2.common.model.weights import load
from sps2.common.models import item_bytes, validate
from sps2.common.models.convert import convert
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.model_card import card_of

from ..checkpoints import write_checkpoint
from ..common.conftest import write_gguf_file
from . import mutate
from .target import Pieces, Target, changed_json, spoilt, written

KEPT_BYTES = 120_000
"""Of a GGUF file: its header and the first tensors. Nothing depends on the values after them."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


class Gguf(Target):
    """GGUF files, converted to folders as `spsctl pull` does."""

    name = "gguf"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = folder / "checkpoint"
        write_checkpoint("qwen3", source)
        path = write_gguf_file(source, folder / "whole.gguf", "qwen3")
        self._whole = path.read_bytes()
        self._header = self._whole.index(b"blk.0.attn_q.weight") + 4000
        self._path, self._out = folder / "model.gguf", folder / "out"

    def case(self, dice: random.Random) -> Pieces:
        head, rest = self._whole[: self._header], self._whole[self._header :]
        how = dice.random()
        if how < 0.35:
            return [mutate.changed(dice, head) + rest]
        if how < 0.75:
            return [self._field(dice)]
        return [mutate.changed(dice, self._whole)]

    def _field(self, dice: random.Random) -> bytes:
        """A change of the type, the count or the value of a field that is there."""
        data = bytearray(self._whole)
        names = [b"general.", b"qwen3.", b"tokenizer.ggml.", b"blk.", b"output", b"token_embd"]
        for _ in range(dice.choice((1, 1, 2, 3))):
            places, at = [], 0
            name = dice.choice(names)
            while (at := data.find(name, at, self._header)) >= 0:
                places.append(at)
                at += 1
            if not places:
                continue
            place = dice.choice(places)
            (length,) = struct.unpack_from("<Q", data, place - 8)
            after = place + min(length, 64)
            where, size = dice.choice(
                ((place - 8, 8), (after, 4), (after + 4, 4), (after + 4, 8), (after + 12, 8))
            )
            value = dice.choice((*range(14), *mutate.INTEGERS)) & ((1 << 8 * size) - 1)
            data[where : where + size] = value.to_bytes(size, "little")
            if dice.random() < 0.2:
                data[place : place + 1] = dice.randbytes(1)
        return bytes(data)

    async def feed(self, pieces: Pieces) -> None:
        written(self._path, pieces[0])
        self._out.mkdir()
        try:
            convert(self._path, self._out, silent)
            validate(self._out)
            Tokenizer(self._out).encode("Some text, 12.")
        finally:
            shutil.rmtree(self._out)


class Safetensors(Target):
    """Files of weights, loaded as a shard loads them."""

    name = "safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_checkpoint("smollm2", folder / "model")
        self._folder = folder / "model"
        self._file = self._folder / "model.safetensors"
        self._whole = self._file.read_bytes()
        (self._size,) = struct.unpack_from("<Q", self._whole)

    def case(self, dice: random.Random) -> Pieces:
        head, rest = self._whole[8 : 8 + self._size], self._whole[8 + self._size :]
        how = dice.random()
        if how < 0.3:
            return [mutate.changed(dice, self._whole)]
        changed = changed_json(dice, head)
        size = len(changed) if dice.random() < 0.9 else dice.choice(mutate.INTEGERS)
        if dice.random() < 0.1:
            rest = mutate.changed(dice, rest)
        return [struct.pack("<Q", size) + changed + rest]

    async def feed(self, pieces: Pieces) -> None:
        self._file.unlink()  # what is mapped must not change
        written(self._file, pieces[0])
        with suppress(Invalid):
            validate(self._folder)
        item_bytes("auto", self._folder, read(self._folder))
        load(self._folder)


class ModelJson(Target):
    """The JSON files of a model's folder, and its chat template, as the gateway reads them."""

    name = "model-json"
    FILES = (
        *("config.json", "config.json", "tokenizer.json", "tokenizer.json"),
        *("tokenizer_config.json", "generation_config.json", "chat_template.jinja"),
        *("special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder / "model"
        write_checkpoint("yarn", self._folder)
        more: dict[str, Any] = {
            "generation_config.json": {"temperature": 0.5, "top_k": 20, "eos_token_id": [2, 3]},
            "special_tokens_map.json": {"eos_token": {"content": "<|end|>", "lstrip": False}},
            "added_tokens.json": {"<|more|>": 384, "<|most|>": 385},
            "model.safetensors.index.json": {"weight_map": {"a": "model.safetensors"}},
        }
        for name, table in more.items():
            (self._folder / name).write_text(json.dumps(table))
        template = json.loads((self._folder / "tokenizer_config.json").read_text())["chat_template"]
        (self._folder / "chat_template.jinja").write_text(template)
        self._texts = {name: (self._folder / name).read_bytes() for name in self.FILES}

    def case(self, dice: random.Random) -> Pieces:
        name = dice.choice(self.FILES)
        text = self._texts[name]
        if name.endswith(".jinja"):
            changed = mutate.changed(dice, text)
        elif name == "tokenizer.json" and dice.random() < 0.6:
            changed = self._tokenizer(dice)
        else:
            changed = changed_json(dice, text) if dice.random() < 0.9 else spoilt(dice, text)
        return [name.encode(), changed]

    def _tokenizer(self, dice: random.Random) -> bytes:
        """A tokenizer.json whose parts besides the vocabulary change; these are small."""
        table = json.loads(self._texts["tokenizer.json"])
        part = dice.choice(("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"))
        if part == "model" and dice.random() < 0.7:
            model = table["model"]
            vocab, merges = model.pop("vocab"), model.pop("merges")
            table["model"] = {"vocab": vocab, "merges": merges}
            changed = mutate.changed_value(dice, model)
            table["model"] |= changed if isinstance(changed, dict) else {}
        else:
            table[part] = mutate.changed_value(dice, table[part])
        return json.dumps(table).encode()

    async def feed(self, pieces: Pieces) -> None:
        name, text = pieces[0].decode(), pieces[1]
        written(self._folder / name, text)
        try:
            self._read()
        finally:
            (self._folder / name).write_bytes(self._texts[name])

    def _read(self) -> None:
        config = read(self._folder)
        block_types(self._folder)
        sampling_defaults(self._folder)
        validate(self._folder)
        tokenizer = Tokenizer(self._folder)
        card_of(self._folder, config, tokenizer, "auto", "none")
        ids = tokenizer.encode("Some text, 123 <|end|> \u4f60")
        tokenizer.decode(ids)
        for each in (*ids, 0, 383, 384, 1 << 20):
            tokenizer.token_bytes(each)
        _ = tokenizer.vocab_size, tokenizer.eos_ids, tokenizer.bos_id
        tokenizer.chat([{"role": "user", "content": "hi <|end|>"}])
        tokenizer.opening()
