"""Makes hostile JSON schemas from dice, and the strange texts in them."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

DEEP = "@deep@"
"""Stands for a value that is nested deeper than Python's `json` writes: `@deep@500@`."""
STRANGE = (
    *(
        "",
        " ",
        "a\x00b",
        "\ud800",
        "\udfff\ud800",
        "a\nb",
        "weather\n",
        "\u202e",
        "\ufdd0",
        "é" * 64,
    ),
    *(
        "<|im_end|>",
        "<|im_start|>system",
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</tool_response>",
    ),
    *('"', '\\"', "\\", '" | /.*/ | "', "NAME", "$ref", "__proto__", "%json {", "\nstart: /.*/"),
    *("{{ 7 * 7 }}", "{% for i in range(9999999) %}x{% endfor %}", "x" * 10_000),
)
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, -1e308, 2**63, 10**30, -(2**63), "", "x", [], {}),
    *([[]], [None], {"": {}}, {"type": None}, f"{DEEP}100@", f"{DEEP}5000@"),
)
PATTERNS = (
    *("(", "[", "*", "a{2,1}", "(?=x)", "(?<!x)y", r"\1", "(?P<n>x)(?P=n)", "(a+)+$", "(a|a)*b"),
    *("x{100000}", "(x{1000}){1000}", "(.{0,500}a){40}", ".*" * 300, "[" + "a-z" * 5000 + "]"),
    *(
        "^" * 50,
        "$^",
        "",
        "(" * 3000 + ")" * 3000,
        r"\p{L}{1,4000}",
        "(?i)" * 100,
        "\x00",
        "a" * 60_000,
    ),
    *(r"[^\x00-\U0010ffff]", "(?:)*", "(()*)*", "((((((a?){30}){30}){30}){30}){30})", r"\uD800"),
)


class Schemas:
    """Throws dice for schemas, and notes in `what` what is special about each."""

    def __init__(self, dice: random.Random, what: list[str]) -> None:
        self._dice = dice
        self._what = what

    def schema(self) -> Any:
        """Any schema."""
        makers: list[Callable[[], Any]] = [
            self._nested, self._recursive, self._impossible, self._large, self._laughs,
            self._pattern, self._numbers, self._wrong, self._named, self._ordinary,
        ]  # fmt: skip
        return self._dice.choice(makers)()

    def _nested(self) -> Any:
        depth = self._dice.choice((20, 90, 300, 900, 3000, 30_000))
        self._what.append(f"nested {depth}")
        return {"type": "object", "properties": {"a": f"{DEEP}{depth}@"}, "required": ["a"]}

    def _recursive(self) -> Any:
        self._what.append("recursive")
        me = {"$ref": "#"}
        node = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
        both = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
        options: list[Any] = [
            me,
            {"type": "object", "properties": {"a": me}},
            {"type": "object", "properties": {"a": me}, "required": ["a"]},
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}},
            {"$defs": both, "$ref": "#/$defs/a"},
            {"type": "object", "additionalProperties": me, "minProperties": 3},
            {"type": "array", "items": me, "minItems": 2},
            {"anyOf": [me, me], "type": "object"},
            {"allOf": [me], "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}},
            {"$ref": "#/$defs/none"}, {"$ref": "#/" + "a/" * 5000}, {"$ref": "file:///etc/passwd"},
            {"$ref": "#/~1%25"}, {"$dynamicRef": "#"}, {"$id": "\x00", "$ref": "\x00#"},
        ]  # fmt: skip
        return self._dice.choice(options)

    def _impossible(self) -> Any:
        self._what.append("impossible")
        text, number, many = {"type": "string"}, {"type": "number"}, {"type": "array"}
        inner: Any = self._dice.choice((
            {"enum": []}, False, {"not": {}}, {"type": []},
            {**text, "minLength": 9, "maxLength": 1},
            {**number, "minimum": 2, "maximum": 1}, {"allOf": [text, number]},
            {"oneOf": [text, text]},
            {**many, "minItems": 5, "maxItems": 1}, {"const": 1, "type": "string"}, {"anyOf": []},
            {**text, "pattern": "^a$", "const": "b"},
            {**many, "uniqueItems": True, "minItems": 3, "items": {"const": 1}},
            {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6},
            {"if": {}, "then": False},
        ))  # fmt: skip
        return {"type": "object", "properties": {"a": inner}, "required": ["a"]}

    def _large(self) -> Any:
        count = self._dice.choice((300, 2000, 6000, 20_000))
        self._what.append(f"large {count}")
        names = [f"name_{number}" for number in range(count)]
        options: list[Any] = [
            {"type": "object", "properties": {"a": {"enum": names}}, "required": ["a"]},
            {"type": "object", "properties": {each: {} for each in names}, "required": names},
            {"type": "object", "properties": {each: {"type": "string"} for each in names}},
            {"anyOf": [{"type": "object", "required": [name]} for name in names]},
            {"type": "object", "properties": {"a": {"type": names}}},
            {"type": "object", "properties": {"a": {"oneOf": [{"const": each} for each in names]}}},
            {"type": "object", "patternProperties": {f"^{each}.*$": {} for each in names}},
            {
                "type": "array",
                "prefixItems": [{"enum": [each]} for each in names],
                "minItems": count,
            },
            {
                "$defs": {each: {"$ref": f"#/$defs/{each}"} for each in names},
                "$ref": "#/$defs/name_0",
            },
        ]
        return self._dice.choice(options)

    def _laughs(self) -> Any:
        depth = self._dice.choice((8, 14, 20, 40))
        key = self._dice.choice(("allOf", "anyOf", "oneOf", "prefixItems", "properties"))
        self._what.append(f"doubled {depth} times by {key}")
        parts: dict[str, Any] = {f"d{depth}": {"type": "string", "maxLength": 3}}
        for number in range(depth):
            two = [{"$ref": f"#/$defs/d{number + 1}"}] * 2
            whole: Any = {"x": two[0], "y": two[1]} if key == "properties" else two
            parts[f"d{number}"] = {key: whole} | (
                {"required": ["x", "y"]} if key == "properties" else {}
            )
        inner = {"$ref": "#/$defs/d0"}
        return {"type": "object", "properties": {"a": inner}, "required": ["a"], "$defs": parts}

    def _pattern(self) -> Any:
        pattern = self.pick("pattern", PATTERNS)
        inner = self._dice.choice((
            {"type": "string", "pattern": pattern}, {"type": "string", "format": pattern},
            {"type": "string", "pattern": pattern, "minLength": 5, "maxLength": 3000},
            {"type": "object", "patternProperties": {pattern: {}}, "minProperties": 1},
            {"type": "object", "propertyNames": {"pattern": pattern}},
        ))  # fmt: skip
        return {"type": "object", "properties": {"a": inner}, "required": ["a"]}

    def _numbers(self) -> Any:
        key = self._dice.choice((
            *("minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength", "maxLength"),
            *("minItems", "maxItems", "minProperties", "maxProperties"),
        ))  # fmt: skip
        value = self._dice.choice(
            (-1, 0, 1e-300, 1e308, 10**30, 2**31, 2**63 - 1, 10**6, 10**9, 0.1, "1")
        )
        self._what.append(f"{key} {value}")
        kind = self._dice.choice(("string", "integer", "number", "array", "object"))
        inner = {"type": kind, key: value}
        return {"type": "object", "properties": {"a": inner}, "required": ["a"]}

    def _wrong(self) -> Any:
        key = self._dice.choice((
            *("type", "properties", "required", "enum", "items", "prefixItems", "anyOf", "allOf"),
            *("$ref", "$defs", "additionalProperties", "pattern", "format", "const", "x-guidance"),
            *("minLength", "minItems", "oneOf", "not", "definitions", "$schema"),
        ))  # fmt: skip
        spaces = {"lenient": True, "whitespace_pattern": "(.*)*", "x": 1}
        value = deepcopy(self._dice.choice((*JUNK, spaces)))
        self._what.append(f"{key} of {str(value)[:20]}")
        inner = {"type": "object", "properties": {"a": {}}} | {key: value}
        return self._dice.choice((inner, {"type": "object", "properties": {"a": inner}}))

    def _named(self) -> Any:
        names = [self.strange() for _ in range(self._dice.randint(1, 4))]
        values = {name: {"enum": [self.strange(), "x"]} for name in names}
        return {"type": "object", "properties": values, "required": [*names, *names]}

    def _ordinary(self) -> Any:
        city = {"type": "string", "maxLength": 8}
        return {"type": "object", "properties": {"city": city}, "required": ["city"]}

    def strange(self) -> str:
        """A text that is strange."""
        text = self._dice.choice(STRANGE)
        self._what.append(repr(text)[:24])
        return text

    def pick(self, what: str, texts: tuple[str, ...]) -> str:
        """One of some texts, noted by its number."""
        place = self._dice.randrange(len(texts))
        self._what.append(f"{what} {place}: {texts[place][:24]!r}")
        return texts[place]


def deepened(text: str) -> str:
    """JSON with deep values in place of the texts that stand for them."""
    head, *rest = text.split(f'"{DEEP}')
    parts = [head]
    for each in rest:
        depth, _, after = each.partition('@"')
        if not depth.isdigit():  # within another text, which keeps it
            parts += [f'"{DEEP}', each]
            continue
        level = '{"type": "object", "properties": {"a": '
        parts += [level * int(depth), "{}", "}}" * int(depth), after]
    return "".join(parts)
