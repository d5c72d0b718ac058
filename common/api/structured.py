"""Fields of a request that make answers follow a grammar: OpenAI's, and vLLM's of either age."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from sps2.common.api.harmless import Harmless
from sps2.common.api.unsupported_fields import Tolerant, ignored, only

NO_TAGS = "a grammar in Lark says where tags are"
BY_SCHEMA = "`additionalProperties` of the schema says so"
ONE_LIBRARY = "grammars are llguidance's here"

Schema = dict[str, Any]
Json = str | Schema
Pattern = Annotated[str, Meta(min_length=1, max_length=1 << 14)]
Rules = Annotated[str, Meta(min_length=1)]
Options = Annotated[list[str], Meta(min_length=1)]
SCHEMA = Meta(description="the answer is JSON that follows this schema, an object or its text")
PATTERN = Meta(description="the answer matches this regular expression (Rust's syntax) as a whole")
OPTIONS = Meta(description="the answer is one of these")
LARK = Meta(description="the answer follows this grammar, in llguidance's Lark")
WHITESPACE = Meta(description="regular expression of what may be between the parts of JSON")


class JsonSchema(Tolerant, frozen=True):
    """A schema, with a name."""

    schema: Annotated[Schema, Meta(description="the answer is JSON that follows it")]
    name: Annotated[str | None, ignored("a name changes nothing")] = None
    description: Annotated[str | None, ignored("the messages say what is wanted")] = None
    strict: Annotated[
        bool | None,
        Meta(
            description="false leaves out keywords of the schema that cannot be guaranteed, which "
            "are refused otherwise; what is left is followed in any case"
        ),
    ] = None


class ResponseFormat(Tolerant, frozen=True):
    """What answers look like."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"],
        Meta(extra={"unsupported": {"grammar": "send `structured_outputs.grammar`"}}),
    ]
    json_schema: Annotated[JsonSchema | None, Meta(description="with type `json_schema`")] = None


class StructuredOutputs(Tolerant, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`: one of its kinds of grammar."""

    json: Annotated[Json | None, SCHEMA] = None
    regex: Annotated[Pattern | None, PATTERN] = None
    choice: Annotated[Options | None, OPTIONS] = None
    grammar: Annotated[Rules | None, LARK] = None
    json_object: Annotated[bool | None, Meta(description="true: a JSON object")] = None
    whitespace_pattern: Annotated[Pattern | None, WHITESPACE] = None
    disable_any_whitespace: Annotated[
        bool | None, Meta(description="true: there is nothing between the parts of JSON")
    ] = None
    disable_fallback: Annotated[bool | None, ignored(ONE_LIBRARY)] = None
    disable_additional_properties: Annotated[bool | None, only(False, why=BY_SCHEMA)] = None
    structural_tag: Annotated[Any, only(why=NO_TAGS)] = None


class GrammarFields(Harmless, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of both kinds of completion; one of them at most makes a grammar."""

    response_format: Annotated[
        ResponseFormat | None, Meta(description="free text, JSON, or JSON that follows a schema")
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Meta(description="one kind of grammar, as vLLM has them")
    ] = None
    guided_json: Annotated[Json | None, Meta(description="as `structured_outputs.json`")] = None
    guided_regex: Annotated[Pattern | None, Meta(description="as `structured_outputs.regex`")] = (
        None
    )
    guided_choice: Annotated[Options | None, Meta(description="as `structured_outputs.choice`")] = (
        None
    )
    guided_grammar: Annotated[Rules | None, Meta(description="as `structured_outputs.grammar`")] = (
        None
    )
    guided_whitespace_pattern: Annotated[
        Pattern | None, Meta(description="as `structured_outputs.whitespace_pattern`")
    ] = None
    guided_decoding_backend: Annotated[str | None, ignored(ONE_LIBRARY)] = None
    structural_tag: Annotated[Any, only(why=NO_TAGS)] = None
