"""The public API: OpenAI's requests and answers, as HTTP, the SDK and the gateway share them.

What a request may say is the type of its fields: which are supported, which change nothing and are
ignored, which are refused unless they ask for nothing. docs/api.md lists them all. A field that is
not there is refused, never ignored.

On the bus a completion is always a stream of chunks; `sps2.common.api.collect` folds them. The last
one has no choices and carries the usage. Chunks about progress come first and have no choices
either.
"""

from sps2.common.api.answers import (
    Answer,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    ErrorBody,
    Model,
    Models,
    Problem,
    Ready,
    Text,
    Tokens,
    TopLogprob,
    Version,
)
from sps2.common.api.conversation import ChatRole, Message, TextPart
from sps2.common.api.parsing import check, parse
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Detokenize,
    Extension,
    ListModels,
    Parameters,
    StreamOptions,
    Tokenize,
)
from sps2.common.api.usage import Usage

__all__ = [
    "Answer",
    "Chat",
    "ChatChoice",
    "ChatChunk",
    "ChatDelta",
    "ChatLogprob",
    "ChatLogprobs",
    "ChatRequest",
    "ChatRole",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "CompletionRequest",
    "Delta",
    "Detokenize",
    "ErrorBody",
    "Extension",
    "ListModels",
    "Message",
    "Model",
    "Models",
    "Parameters",
    "Problem",
    "Ready",
    "StreamOptions",
    "Text",
    "TextPart",
    "Tokenize",
    "Tokens",
    "TopLogprob",
    "Usage",
    "Version",
    "check",
    "parse",
]
