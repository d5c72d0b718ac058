"""Parses JSON or Python values into typed requests; errors name the field at fault."""

import codecs
import re
from typing import Any, TypeVar

import msgspec

from sps2.common.api.fields import field_at, resembling
from sps2.common.api.words import in_words, sent
from sps2.common.errors import Invalid

T = TypeVar("T")

UNSUPPORTED, UNKNOWN, MISSING = "unsupported_parameter", "unknown_field", "missing_field"
_FIELD = {
    re.compile("unsupported field `(?P<name>[a-z_]+)`: (?P<advice>.*)"): UNSUPPORTED,
    re.compile("Object contains unknown field `(?P<name>.*)`", re.DOTALL): UNKNOWN,
    re.compile("Object missing required field `(?P<name>.*)`"): MISSING,
}
"""Messages about fields, of msgspec and of the types themselves, with the API's error code."""
MOST_CHARS = 600
"""Maximum characters of msgspec's message in an error: it quotes names, which may be very long."""
_BOUND = re.compile(
    "Expected `.*?`(?:, got `(?P<sent>.*)`| .*)|(?:Number|Integer value) out of range.*"
)
"""Messages of msgspec about a value of the wrong type or out of bounds."""
_AT = re.compile(r"(.*?)(?: - at `\$?(.*)`)?", re.DOTALL)


def parse(body: bytes, kind: type[T]) -> T:
    """Parse a request from JSON. A byte order mark is skipped; 4.0 counts as a whole number.

    Raises:
        Invalid: not UTF-8, not JSON, or not a `kind`; the field at fault is named.
    """
    try:
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            # once more: clients in languages without integers write 4.0 for 4
            return msgspec.convert(_whole(msgspec.json.decode(body)), kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind) from error
    except UnicodeDecodeError as error:
        raise Invalid(
            f"the body is not valid UTF-8: {error.reason}", None, "invalid_utf8"
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"the body is not valid JSON: {error}", None, "invalid_json") from error


def check(fields: dict[str, object], kind: type[T]) -> T:
    """Convert Python values to a request. Raises Invalid as `parse` does."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind) from error


def _whole(value: Any) -> Any:
    """`value` with an int in place of every float that is a whole number."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(each) for each in value]
        case dict():
            return {name: _whole(each) for name, each in value.items()}
    return value


def _invalid(error: msgspec.ValidationError, kind: type) -> Invalid:
    """The error for the sender, naming the field at fault."""
    said = str(error)
    if len(said) > MOST_CHARS:
        said = f"{said[: MOST_CHARS // 2]}...{said[-MOST_CHARS // 2 :]}"
    what, at = _AT.fullmatch(said).groups()  # type: ignore[union-attr]
    at = (at or "").lstrip(".")
    path = at.removesuffix("[...]")
    for form, code in _FIELD.items():
        if found := form.fullmatch(what):
            path = ".".join(filter(None, (path, found["name"])))
            message = f"`{path}` is required"
            if code == UNKNOWN:
                meant = resembling(kind, path)
                message = f"unknown field `{path}`{f'; did you mean `{meant}`?' if meant else ''}"
            elif code == UNSUPPORTED:
                message = f"`{path}` is not supported: {found['advice']}"
            return Invalid(message, path, code)
    field = field_at(kind, at)
    if field is not None and (given := re.match("Invalid enum value (.*)", what)):
        if why := field.extra.get("unsupported", {}).get(given[1].strip("'")):
            return Invalid(f"`{path}`: {given[1]} is not supported: {why}", path, UNSUPPORTED)
        choices = ", ".join(f"'{each}'" for each in field.choices)
        what = f"{given[1]} is none of {choices}"
    elif field is not None and (bound := _BOUND.fullmatch(what)):
        if bound["sent"] == "null" and path and not at.endswith("]"):
            return Invalid(f"`{path}` is required", path, MISSING)
        but = f", not {sent(bound['sent'])}" if bound["sent"] else ""
        whose = f"`{path}`" if path else "the body"
        if at != path:
            whose = f"a value of {whose}"
        return Invalid(
            f"{whose} must be {in_words(field.type)}{but}", path or None, "invalid_value"
        )
    return Invalid(f"`{path}`: {what}" if path else what, path or None, "invalid_value")
