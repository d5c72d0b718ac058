"""Tools, how families write calls of them, and what follows a grammar."""

from sps2.common.api import ChatRequest, Message, Tool
from sps2.common.api.tools import Function
from sps2.common.errors import Internal
from sps2.services.gateway.tools.events import merged
from sps2.services.gateway.tools.reading import reading_of

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool(function=Function("weather", parameters=SCHEMA))
CLOCK = Tool(function=Function("clock"))
STRICT = Tool(function=Function("weather", parameters=SCHEMA, strict=True))
OSLO = '{"city": "Oslo"}'
ROME = '{"place": "Rome"}'

WRITTEN = {
    "hermes": '<tool_call>\n{{"name": "weather", "arguments": {}}}\n</tool_call>',
    "qwen3_coder": '<tool_call>\n{{"name": "weather", "arguments": {}}}\n</tool_call>',
    "llama3": '{{"name": "weather", "parameters": {}}}',
    "mistral": '[TOOL_CALLS][{{"name": "weather", "arguments": {}}}]',
    "pythonic": '{{"name": "weather", "parameters": {}}}',
    "json": '{{"name": "weather", "arguments": {}}}',
}


def reading(family="hermes", thoughts="none", **given):
    request = ChatRequest(messages=[Message("user", "hi")], **given)
    return reading_of(request, family, thoughts)


def follows(grammar, text, tokenizer):
    """Whether `text` follows the grammar, and may end there."""
    try:
        matcher = tokenizer.grammars.matcher(grammar, tokenizer.encode(text, False))
        if not matcher.ended:
            matcher.advance(tokenizer.eos_ids[0])
    except Internal:
        return False
    return True


def read(reading, text):
    parser = reading.parser()
    return merged(parser.add(text) + parser.close())
