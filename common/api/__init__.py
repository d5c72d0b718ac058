"""The public API: OpenAI's requests and answers, as HTTP, the SDK and the gateway share them.

The types of a request's fields say what it may contain: supported fields, fields that are ignored
because they change nothing, and fields that are refused unless they have their neutral value.
docs/api.md lists them all. An unknown field is refused, never ignored.

On the bus a completion is always a stream of chunks; `sps2.common.api.collect` folds them. The last
chunk has no choices and carries the usage. Progress chunks come first and have no choices either.
"""

from sps2.common.api.answers import (
    Answer,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatFinish,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    ErrorBody,
    Estimate,
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
from sps2.common.api.embeddings import (
    Embedding,
    EmbeddingExtension,
    EmbeddingRequest,
    Embeddings,
)
from sps2.common.api.parsing import check, parse
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Detokenize,
    EstimateRequest,
    Extension,
    ListModels,
    Parameters,
    StreamOptions,
    Tokenize,
)
from sps2.common.api.structured import JsonSchema, ResponseFormat, StructuredOutputs
from sps2.common.api.tools import (
    Function,
    FunctionCall,
    FunctionDelta,
    FunctionReference,
    NamedTool,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from sps2.common.api.usage import Usage

__all__ = [
    "Answer",
    "Chat",
    "ChatChoice",
    "ChatChunk",
    "ChatDelta",
    "ChatFinish",
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
    "Embedding",
    "EmbeddingExtension",
    "EmbeddingRequest",
    "Embeddings",
    "ErrorBody",
    "Estimate",
    "EstimateRequest",
    "Extension",
    "Function",
    "FunctionCall",
    "FunctionDelta",
    "FunctionReference",
    "JsonSchema",
    "ListModels",
    "Message",
    "Model",
    "Models",
    "NamedTool",
    "Parameters",
    "Problem",
    "Ready",
    "ResponseFormat",
    "StreamOptions",
    "StructuredOutputs",
    "Text",
    "TextPart",
    "Tokenize",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "TopLogprob",
    "Usage",
    "Version",
    "check",
    "parse",
]
