"""How families of models write calls and thoughts, and which family a model belongs to."""

import re
from collections.abc import Collection
from typing import NamedTuple

from sps2.common.errors import Invalid
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.tools.call_object import CallObject
from sps2.services.gateway.tools.calls import Form
from sps2.services.gateway.tools.named_call import ARGS, ID, NamedCall
from sps2.services.gateway.tools.python_call import PythonCall
from sps2.services.gateway.tools.reader import Functions, Reader
from sps2.services.gateway.tools.tagged_call import TaggedCall
from sps2.services.gateway.tools.thoughts import Tags


class Written(NamedTuple):
    """How a model that must call writes its calls; `NAME` stands for the function's, quoted."""

    before: str
    """Before the arguments."""
    after: str = ""
    between: str | None = None
    """Between two calls; None if there is one alone."""
    first: str = ""
    """Before all calls."""
    last: str = ""


class Family(NamedTuple):
    """How models of a family write calls."""

    form: Form
    written: Written


def _object(character: str, functions: Functions) -> Reader | None:
    return CallObject(functions, needs_arguments=False) if character == "{" else None


def _bare_object(character: str, functions: Functions) -> Reader | None:
    return CallObject(functions, needs_arguments=True) if character == "{" else None


def _object_or_name(character: str, functions: Functions) -> Reader | None:
    if character == "{":
        return CallObject(functions, needs_arguments=False)
    return NamedCall(functions) if re.match("[A-Za-z0-9_]", character) else None


def _object_or_python(character: str, functions: Functions) -> Reader | None:
    if character == "{":
        return CallObject(functions, needs_arguments=True)
    return PythonCall(functions) if re.match("[A-Za-z_]", character) else None


def _object_or_tags(character: str, functions: Functions) -> Reader | None:
    if character == "{":
        return CallObject(functions, needs_arguments=False)
    return TaggedCall(functions) if character == "<" else None


CALL, CALLS, PYTHON = "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
CLOSING = "</tool_call>"
_TAGGED = Written('<tool_call>\n{"name": NAME, "arguments": ', "}\n</tool_call>", "\n")
_PARAMETERS = Written('{"name": NAME, "parameters": ', "}")

FAMILIES: dict[str, Family] = {
    "hermes": Family(Form(_object, (CALL,), CLOSING), _TAGGED),
    "qwen3_coder": Family(Form(_object_or_tags, (CALL,), CLOSING), _TAGGED),
    "llama3": Family(Form(_bare_object, (PYTHON,), bare="{", separator=";"), _PARAMETERS),
    "mistral": Family(
        Form(_object_or_name, (CALLS,), lists=True),
        Written('{"name": NAME, "arguments": ', "}", ", ", "[TOOL_CALLS][", "]"),
    ),
    "pythonic": Family(
        Form(_object_or_python, (PYTHON,), bare="[{", lists=True, python=True), _PARAMETERS
    ),
    "json": Family(
        Form(_bare_object, bare="[{", lists=True), Written('{"name": NAME, "arguments": ', "}")
    ),
}
"""By the names of `gateway.tool_parser`."""
NAMED = Written(f"{CALLS}NAME{ARGS}", between="")
"""How models of Mistral write calls that have a token for it."""

THOUGHTS: dict[str, Tags | None] = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
    "none": None,
}
"""By the names of `gateway.reasoning_parser`."""


def family_of(tokenizer: Tokenizer) -> str:
    """The name of the family to whose form a model's chat template tells it to write calls."""
    try:
        template = tokenizer.tool_template
    except Invalid:
        return "hermes"  # there are no chats
    source, special = template.source, tokenizer.special
    if CALLS in source or CALLS in special:
        return "mistral"
    if CALL in source:
        return "qwen3_coder" if "<function=" in source else "hermes"
    if not template.uses_tools:
        return "hermes"  # as the text says that it gets instead
    if '"parameters": dictionary of argument name' in source:
        return "llama3"
    if re.search(r"\[func_name\d?\(|\[\w+\(\w+=", source):
        return "pythonic"
    return "llama3" if PYTHON in special else "json"


def thoughts_of(tokenizer: Tokenizer) -> str:
    """The name of the tags between which a model writes its thoughts; `none` if it has none."""
    try:
        source = tokenizer.template.source
    except Invalid:
        return "none"
    for name, tags in THOUGHTS.items():
        if tags is not None and (tags.closing in source or tags.opening in source):
            return name
    return "none"


def marks(family: Family | None, tags: Tags | None) -> Collection[str]:
    """The texts that begin and end calls and thoughts, which may be special tokens."""
    found = set(tags or ())
    if family is not None:
        found |= {*family.form.openers, family.form.closer}
        if CALLS in family.form.openers:
            found |= {ARGS, ID}
    return found - {""}
