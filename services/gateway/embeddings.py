"""Turns requests for embeddings into jobs, and what these return into vectors."""

import math
from array import array
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from sps2.common.api import CompletionRequest
from sps2.common.api.embeddings import Embedding, EmbeddingRequest, Embeddings, EmbeddingUsage
from sps2.common.api.usage import Usage
from sps2.common.errors import Internal, Invalid
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.generate import Record
from sps2.services.gateway.limits import BAD
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.threads import threaded
from sps2.services.gateway.validate import Order, order_completion

VALUES_PER_CHARACTER = 16
"""Numbers that are added up in the time in which one character is tokenised."""


def completion_of(request: EmbeddingRequest) -> CompletionRequest:
    """The completion without an answer whose prompts are the inputs.

    Raises:
        Invalid: progress is wanted, which only streams have.
    """
    if request.sps2 is not None and request.sps2.progress:
        raise Invalid("`sps2.progress` needs a stream: leave it out", "sps2.progress", BAD)
    return CompletionRequest(
        prompt=request.input,
        model=request.model,
        max_tokens=0,
        echo=True,
        temperature=0.0,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        cache_salt=request.cache_salt,
        sps2=request.sps2,
    )


@contextmanager
def inputs_named() -> Iterator[None]:
    """An error about the prompt, in the block, is one about the input."""
    try:
        yield
    except Invalid as error:
        if error.field != "prompt":
            raise
        message = error.message.replace("`prompt`", "`input`")
        raise Invalid(message, "input", error.code) from error


async def order_embedding(
    request: EmbeddingRequest,
    completion: CompletionRequest,
    name: str,
    served: Served,
    tokenizer: Tokenizer,
) -> Order:
    """The jobs of a request, one for each input. Raises Invalid as `order_completion` does."""
    order = await order_completion(completion, name, served, tokenizer)
    pooling = (request.sps2.pooling if request.sps2 else None) or "last"
    jobs = tuple(
        replace(job, sampling=replace(job.sampling, pooling=pooling)) for job in order.jobs
    )
    return replace(order, jobs=jobs)


async def embeddings_of(
    request: EmbeddingRequest, model: str, records: Sequence[Record], total: Usage
) -> Embeddings:
    """The answer, from what the jobs returned.

    Raises:
        Internal: a job returned no hidden states.
    """
    as_text = request.encoding_format == "base64"

    def data() -> list[Embedding]:
        vectors = [vector(record.first.pooled if record.first else ()) for record in records]
        return [
            Embedding(index, b64encode(each).decode() if as_text else each.tolist())
            for index, each in enumerate(vectors)
        ]

    size = sum(len(part) for record in records if record.first for part in record.first.pooled)
    made = await threaded(size // VALUES_PER_CHARACTER, data)
    tokens = total.prompt_tokens
    return Embeddings(made, model, EmbeddingUsage(tokens, tokens, total.sps2))


def vector(parts: Sequence[bytes]) -> "array[float]":
    """The sum of the parts, of length 1. A sum of zeros stays as it is."""
    if not parts:
        raise Internal("a prefill returned no hidden states")
    sums = [math.fsum(values) for values in zip(*map(_floats, parts), strict=True)]
    length = math.hypot(*sums) or 1.0
    return array("f", [value / length for value in sums])


def _floats(raw: bytes) -> "array[float]":
    values = array("f")
    values.frombytes(raw)
    return values
