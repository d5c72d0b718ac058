"""What decoding raises, and msgspec's validation errors in plain words."""

import re

import msgspec

MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding JSON, MessagePack or TOML raises: for its form, types, encoding, or depth."""
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
GIVEN = KINDS | {"int": "a number", "float": "a number with a fraction", "null": "null"}
BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_WRONG_KIND = re.compile("Expected `(?P<kinds>.+)`, got `(?P<given>.+)`")
_BOUND = re.compile(r"Expected `\w+` (?P<length>of length )?(?P<bound>[<>]=?) (?P<value>\S+)")
_PATTERN = re.compile("Expected `str` matching regex .*", re.DOTALL)


def in_words(what: str, form: str = "") -> str:
    """What a value must be, for example "must be at least 1"; other messages are unchanged.

    Args:
        what: msgspec's message, without the place.
        form: the rule of a text with a pattern, in words: "may have letters only".
    """
    if wrong := _WRONG_KIND.fullmatch(what):
        kinds = [KINDS.get(kind, kind) for kind in wrong["kinds"].split(" | ") if kind != "null"]
        given = GIVEN.get(wrong["given"], wrong["given"])
        return f"must be {' or '.join(kinds)}, not {given}"
    if bound := _BOUND.fullmatch(what):
        value = f"{float(bound['value']):g}" if "." in bound["value"] else bound["value"]
        if not bound["length"]:
            return f"must be {BOUNDS[bound['bound']]} {value}"
        if (bound["bound"], value) == (">=", "1"):
            return "must not be empty"
        return f"must have {BOUNDS[bound['bound']]} {value} characters or parts"
    if form and _PATTERN.fullmatch(what):
        return form
    return what
