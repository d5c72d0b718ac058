"""Chat templates of models, rendered in jinja2's sandbox as in transformers."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sps2.common.errors import Invalid

NOTHING: Mapping[str, Any] = MappingProxyType({})


class ChatTemplate:
    """Renders messages to the text of a prompt."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are variables of the template, for example `bos_token`."""
        self.source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def uses_tools(self) -> bool:
        """Whether the template has a place for the descriptions of tools."""
        return re.search(r"\btools\b", self.source) is not None

    @cached_property
    def wants_short_ids(self) -> bool:
        """Whether the template takes only ids of calls that have nine characters (Mistral's)."""
        return re.search(r"\blength\s*(==|!=|<|of)?\s*9\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = NOTHING,
    ) -> str:
        """Render the prompt's text, with special tokens spelled out.

        Args:
            variables: of the template, besides its special tokens.

        Raises:
            Invalid: the template is broken, or refuses these messages.
        """
        given = {"tools": None, "documents": None} | self._special_tokens | {**variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        except jinja2.TemplateSyntaxError as error:
            raise Invalid(f"the model's chat template is broken: {error}") from error
        except Exception as error:  # a template can fail in any way on unexpected messages
            raise Invalid(
                f"the model's chat template refuses these messages: {error}",
                "messages",
                "invalid_value",
            ) from error

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.source)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's text for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
