"""Checks that answers follow JSON schemas, and measures what that costs.

    python benchmarks/structured.py [--schemas 1000] [--suite FOLDER] [--address tcp://...]

The schemas are made up from a seed; or they are those of the JSON-Schema-Test-Suite: a folder of
it, such as `json/tests/draft2020-12` in the source archive of the package `jsonschema`. Each answer
is validated by `jsonschema`. Refused schemas and answers that `max_tokens` cut are counted apart.
The cost is measured here, along the same answers: the CPU time of a mask and of a step behind it.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.errors import Invalid
from sps2.common.grammar import json_schema
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

PORT = 18680
WORDS = (
    "name",
    "size",
    "color",
    "owner",
    "items",
    "price",
    "count",
    "tags",
    "state",
    "note",
    "place",
)
PATTERNS = ("^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]+$", "^(red|green)[0-9]?$")
FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")
CHECKED = ("uuid", "email", "ipv4")
"""Formats that `jsonschema` checks as the standard says: Python knows no year 0, for example."""
SHOWN = 10
"""Failures that are shown whole."""

Schema = dict[str, Any]


class Outcome(NamedTuple):
    """What became of a schema: `valid`, `cut`, `refused` or `WRONG`."""

    verdict: str
    schema: Schema
    text: str = ""
    why: str = ""


class Maker:
    """Makes schemas of bounded JSON from a seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def document(self) -> Schema:
        """An object with a few properties, sometimes with a list of any length."""
        schema = self._object(3)
        if self._dice.random() < 0.1:
            following = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
            node = {"type": "object", "properties": {"id": self._integer(), "next": following}}
            closed = {"required": ["id", "next"], "additionalProperties": False}
            schema["$defs"] = {"node": node | closed}
            schema["properties"]["first"] = {"$ref": "#/$defs/node"}
        return schema

    def _value(self, depth: int) -> Schema:
        simple = [self._string, self._integer, self._number, self._choice, self._flag, self._text]
        if depth and self._dice.random() < 0.4:
            nested = [self._object, self._array, self._either]
            return self._dice.choice(nested)(depth - 1)
        return self._dice.choice(simple)()

    def _object(self, depth: int) -> Schema:
        names = self._dice.sample(WORDS, self._dice.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: self._value(depth) for name in names},
            "required": [name for name in names if self._dice.random() < 0.8],
            "additionalProperties": False,
        }

    def _array(self, depth: int) -> Schema:
        least = self._dice.randint(0, 2)
        most = least + self._dice.randint(0, 2)
        return {"type": "array", "items": self._value(depth), "minItems": least, "maxItems": most}

    def _either(self, depth: int) -> Schema:
        return {"anyOf": [self._value(depth) for _ in range(self._dice.randint(2, 3))]}

    def _string(self) -> Schema:
        least = self._dice.randint(0, 3)
        most = least + self._dice.randint(1, 20)
        return {"type": "string", "minLength": least, "maxLength": most}

    def _text(self) -> Schema:
        if self._dice.random() < 0.5:
            return {"type": "string", "format": self._dice.choice(FORMATS), "maxLength": 40}
        return {"type": "string", "pattern": self._dice.choice(PATTERNS)}

    def _integer(self) -> Schema:
        least = self._dice.randint(-100, 100)
        return {"type": "integer", "minimum": least, "maximum": least + self._dice.randint(0, 1000)}

    def _number(self) -> Schema:
        most = self._dice.randint(1, 50)
        return {"type": "number", "minimum": 0, "exclusiveMaximum": most, "multipleOf": 0.25}

    def _choice(self) -> Schema:
        options: list[Any] = [*self._dice.sample(WORDS, 3), None, self._dice.randint(0, 9)]
        return {"enum": self._dice.sample(options, self._dice.randint(1, 4))}

    def _flag(self) -> Schema:
        return {"type": self._dice.choice(["boolean", "null", ["boolean", "null"]])}


def suite(folder: Path) -> Iterator[Schema]:
    """The schemas of a folder of the JSON-Schema-Test-Suite that are objects."""
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            if isinstance(case["schema"], dict):
                yield case["schema"]


async def ask(client: AsyncClient, schema: Schema, seed: int, max_tokens: int) -> Outcome:
    """An answer that follows `schema`, and whether it does."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    question = f"Answer with JSON for this schema: {json.dumps(schema)[:1000]}"
    try:
        chat = await client.chat(
            question, response_format=form, max_tokens=max_tokens, temperature=1.0, seed=seed
        )
    except Invalid as error:
        return Outcome("refused", schema, why=str(error))
    (choice,) = chat.choices
    text = choice.message.content or ""
    if choice.finish_reason != "stop":
        return Outcome("cut", schema, text)
    try:
        checker = jsonschema.FormatChecker(CHECKED)
        jsonschema.validate(json.loads(text), schema, format_checker=checker)
    except (ValueError, jsonschema.ValidationError) as error:
        return Outcome("WRONG", schema, text, str(error).partition("\n")[0])
    return Outcome("valid", schema, text)


async def run(address: str, schemas: list[Schema], options: argparse.Namespace) -> list[Outcome]:
    """The outcomes of all schemas, a few at a time."""
    turn = asyncio.Semaphore(options.concurrency)
    async with AsyncClient(address) as client:

        async def one(seed: int, schema: Schema) -> Outcome:
            async with turn:
                return await ask(client, schema, seed, options.max_tokens)

        return await asyncio.gather(*(one(*each) for each in enumerate(schemas)))


def costs_us(tokenizer: Tokenizer, outcomes: list[Outcome]) -> tuple[list[float], list[float]]:
    """Microseconds for a mask and a step, at each token of the answers; and for each grammar."""
    masks, compiled = [], []
    scores = np.zeros(tokenizer.vocab_size, np.float32)
    for each in outcomes:
        if each.verdict != "valid":
            continue
        begun_s = time.thread_time()
        matcher = tokenizer.grammars.matcher(json_schema(each.schema))
        compiled.append(1e6 * (time.thread_time() - begun_s))
        for token in tokenizer.encode(each.text, add_special_tokens=False):
            begun_s = time.thread_time()
            matcher.ban(scores)
            matcher.advance(token)
            masks.append(1e6 * (time.thread_time() - begun_s))
    return masks, compiled


def spread(values: list[float]) -> str:
    """Median, mean, 99th percentile and maximum."""
    ordered = sorted(values)
    last = ordered[int(0.99 * (len(ordered) - 1))]
    middle, mean = statistics.median(ordered), statistics.fmean(ordered)
    return f"median {middle:.1f}, mean {mean:.1f}, 99% {last:.0f}, most {ordered[-1]:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--address", help="of a running gateway on the bus; else one is started")
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--suite", type=Path, help="a folder of the JSON-Schema-Test-Suite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=600)
    options = parser.parse_args()

    maker = Maker(options.seed)
    schemas = [*suite(options.suite)] if options.suite else []
    schemas = schemas[: options.schemas] or [maker.document() for _ in range(options.schemas)]
    cluster: AbstractContextManager[object] = nullcontext()
    address = options.address
    if address is None:
        cluster = running_cluster(name="structured", port=PORT, model=options.model, mixed=1)
        address = config.load(port=PORT).gateway_address
    begun_s = time.monotonic()
    with cluster:
        outcomes = asyncio.run(run(address, schemas, options))
    took_s = time.monotonic() - begun_s

    found = Counter(each.verdict for each in outcomes)
    print(f"{len(schemas)} schemas in {took_s:.0f} s: {dict(found)}")
    for why, count in Counter(each.why for each in outcomes if each.verdict == "refused").items():
        print(f"  refused {count}: {why}")
    for each in [each for each in outcomes if each.verdict == "WRONG"][:SHOWN]:
        print(f"  WRONG: {each.why}\n    {json.dumps(each.schema)}\n    {each.text!r}")
    masks, compiled = costs_us(Tokenizer(locate(options.model)), outcomes)
    print(f"mask and step, us of CPU for each of {len(masks)} tokens: {spread(masks)}")
    print(
        f"to compile and begin, us of CPU for each of {len(compiled)} grammars: {spread(compiled)}"
    )
    return 1 if found["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
