"""Grammars that answers must follow: written as text, checked, compiled, matched token by token.

A grammar travels as JSON text in llguidance's form, in `Sampling.grammar`; empty is free text.
"""

from sps2.common.grammar.compiled import Grammars, check
from sps2.common.grammar.matcher import Matcher
from sps2.common.grammar.sources import choice, json_object, json_schema, lark, regex

__all__ = [
    "Grammars",
    "Matcher",
    "check",
    "choice",
    "json_object",
    "json_schema",
    "lark",
    "regex",
]
