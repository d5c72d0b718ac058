"""The grammar that a request sets for its answers, made and checked in a thread."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec

from sps2.common.api import Parameters, StructuredOutputs
from sps2.common.api.structured import Json
from sps2.common.errors import Invalid
from sps2.common.grammar import check, choice, json_object, json_schema, lark, regex
from sps2.common.grammar.sources import WHITESPACE
from sps2.common.text.tokens import Tokenizer
from sps2.common.words import listed

BAD = "invalid_value"
NOT_GUARANTEED = ("Unimplemented keys", "Unknown format", "oneOf constraints")
"""How the library's words begin about keywords that can be left out of a schema."""

Make = Callable[[], str]


class Wanted(NamedTuple):
    """A grammar that is not made yet, and the field of the request that it comes from."""

    field: str
    make: Make


async def grammar_of(request: Parameters, tokenizer: Tokenizer) -> str:
    """What answers to a request must follow; empty if they are free text.

    Raises:
        Invalid: the grammar is wrong, impossible or too large, or there are several; the field at
            fault is named.
    """
    wanted = [*_of_format(request), *_of_outputs(request)]
    if not wanted:
        return ""
    if len(wanted) > 1:
        names = listed([f"`{each.field}`" for each in wanted], "and")
        raise Invalid(f"an answer follows one grammar; there are {names}", wanted[1].field, BAD)
    return await checked(*wanted[0], tokenizer)


async def checked(field: str, make: Make, tokenizer: Tokenizer) -> str:
    """Make a grammar and check it, in a thread. Raises Invalid, which names `field`."""

    def work() -> str:
        grammar = make()
        check(grammar, tokenizer)
        return grammar

    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(tokenizer.grammars.threads, work)
    except Invalid as error:
        advice = ""
        if field.startswith("response_format") and error.message.startswith(NOT_GUARANTEED):
            advice = "; `strict` false leaves out what cannot be guaranteed"
        raise Invalid(f"`{field}` cannot be followed: {error}{advice}", field, BAD) from error


def _of_format(request: Parameters) -> Iterator[Wanted]:
    wanted = request.response_format
    if wanted is None:
        return
    given, field = wanted.json_schema, "response_format.json_schema"
    if (given is None) == (wanted.type == "json_schema"):
        needs = "needs" if given is None else "has no"
        raise Invalid(
            f"`response_format` of type `{wanted.type}` {needs} `json_schema`", field, BAD
        )
    if given is not None:
        lenient = given.strict is False
        yield Wanted(f"{field}.schema", partial(json_schema, given.schema, lenient=lenient))
    elif wanted.type == "json_object":
        yield Wanted("response_format", json_object)


def _of_outputs(request: Parameters) -> Iterator[Wanted]:
    """The grammars of vLLM's fields, of either age."""
    outputs = request.structured_outputs
    if outputs is not None:
        space = outputs.whitespace_pattern
        if space is not None and outputs.disable_any_whitespace:
            raise Invalid(
                "`structured_outputs.whitespace_pattern` needs whitespace, which "
                "`disable_any_whitespace` excludes",
                "structured_outputs.whitespace_pattern",
                BAD,
            )
        whitespace = None if outputs.disable_any_whitespace else space or WHITESPACE
        found = [*_kinds(outputs, "structured_outputs.", whitespace)]
        if not found:
            kinds = "`json`, `regex`, `choice`, `grammar` and `json_object`"
            raise Invalid(f"`structured_outputs` needs one of {kinds}", "structured_outputs", BAD)
        yield from found
    older = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    yield from _kinds(older, "guided_", request.guided_whitespace_pattern or WHITESPACE)


def _kinds(wanted: StructuredOutputs, prefix: str, whitespace: str | None) -> Iterator[Wanted]:
    if wanted.json is not None:
        yield Wanted(f"{prefix}json", partial(_schema, wanted.json, whitespace))
    if wanted.regex is not None:
        yield Wanted(f"{prefix}regex", partial(regex, wanted.regex))
    if wanted.choice is not None:
        yield Wanted(f"{prefix}choice", partial(choice, wanted.choice))
    if wanted.grammar is not None:
        yield Wanted(f"{prefix}grammar", partial(lark, wanted.grammar))
    if wanted.json_object:
        any_object = {"type": "object"}
        yield Wanted(f"{prefix}json_object", partial(json_schema, any_object, whitespace))


def _schema(given: Json, whitespace: str | None) -> str:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise Invalid(f"it is not a JSON schema: {error}") from error
    return json_schema(given, whitespace)
