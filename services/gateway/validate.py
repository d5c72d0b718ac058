"""Checks what the types of a request cannot say, and makes jobs of what is asked."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from sps2.common.api import ChatRequest, CompletionRequest, Extension, Message, Parameters
from sps2.common.errors import Invalid
from sps2.common.messages import Sampling, Wish
from sps2.common.tokens import Tokenizer
from sps2.services.gateway.generate import Job
from sps2.services.gateway.limits import Served
from sps2.services.memory import give_back

R = TypeVar("R")

DEFAULT_MAX_TOKENS = 16
TURN_CHARS = 32
"""What a turn of a conversation takes besides its content, as characters of a text."""
LONG_TEXT = 4096
"""Characters from which on a text is tokenised in a thread."""
HUGE_TEXT = 64 << 10
"""Characters from which on the memory that this took is given back at once."""


class Order(msgspec.Struct, frozen=True):
    """A checked request: `jobs` are prompt-major, as the choices of the answer."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]
    """The prompts as they were given, None where they were token ids."""
    jobs: tuple[Job, ...]


async def order_completion(
    request: CompletionRequest, name: str, served: Served, tokenizer: Tokenizer
) -> Order:
    """The jobs of a completion. Raises Invalid naming the field at fault."""
    served.check_model(request.model)
    choices = _choices(request, served)
    if request.suffix:
        raise Invalid("`suffix` is not supported", "suffix", "unsupported_parameter")
    if request.best_of not in (None, choices):
        raise Invalid("`best_of` other than `n` is not supported", "best_of", "unsupported_value")
    silent = request.max_tokens == 0
    if silent and not request.echo:
        raise Invalid("`max_tokens` must be at least 1 unless `echo` is set", "max_tokens")

    given = _prompts(request)
    prompts = [await _tokens(each, served, tokenizer) for each in given]
    return Order(
        tuple(prompts),
        tuple(each if isinstance(each, str) else None for each in given),
        _jobs(
            request,
            name,
            prompts,
            choices,
            served,
            max_tokens=request.max_tokens,
            default=DEFAULT_MAX_TOKENS,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
        ),
    )


async def order_chat(
    request: ChatRequest, name: str, served: Served, tokenizer: Tokenizer
) -> Order:
    """The jobs of an answer in a conversation. Raises Invalid naming the field at fault."""
    served.check_model(request.model)
    choices = _choices(request, served)
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise Invalid(
            "give `max_completion_tokens` or `max_tokens`, not both", "max_completion_tokens"
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise Invalid("`top_logprobs` needs `logprobs` to be true", "top_logprobs")

    prompt = await tokens_of_chat(request.messages, tokenizer, served.max_context)
    return Order(
        (prompt,),
        (None,),
        _jobs(
            request,
            name,
            [prompt],
            choices,
            served,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            default=served.default_max_tokens or served.max_context,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=None,
        ),
    )


async def tokens_of_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, most: int
) -> tuple[int, ...]:
    """Token ids of a conversation, ready for the assistant's answer.

    Raises Invalid if there are far more than `most`.
    """
    turns = [_turn(message) for message in messages]
    size = sum(TURN_CHARS + len(turn["content"]) for turn in turns)
    return tuple(await threaded(size, lambda: tokenizer.chat(turns, most=most)))


async def threaded(size: int, work: Callable[[], R]) -> R:
    """`work()`, in a thread if the text it is about has so many characters that it takes long."""

    def frugally() -> R:
        try:
            return work()
        finally:
            if size >= HUGE_TEXT:
                give_back()

    return await asyncio.to_thread(frugally) if size >= LONG_TEXT else work()


def _turn(message: Message) -> dict[str, Any]:
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    # templates know no developer: OpenAI's newer word for the system's voice
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content}


def choices_of(request: CompletionRequest | ChatRequest) -> int:
    """Choices that a request asks for, of all its prompts together."""
    prompts = 1
    if isinstance(request, CompletionRequest) and isinstance(request.prompt, list):
        is_ids = not request.prompt or isinstance(request.prompt[0], int)
        prompts = 1 if is_ids else len(request.prompt)
    return prompts * (request.n or 1)


def _choices(request: CompletionRequest | ChatRequest, served: Served) -> int:
    choices = 1 if request.n is None else request.n
    if choices > served.max_choices:
        raise Invalid(f"`n` must be at most {served.max_choices}", "n", "invalid_value")
    if request.stream_options is not None and not request.stream:
        raise Invalid("`stream_options` needs `stream` to be true", "stream_options")
    return choices


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Invalid("`prompt` is empty", "prompt", "invalid_value")
    if all(isinstance(each, int) for each in prompt):
        return [[each for each in prompt if isinstance(each, int)]]
    if all(isinstance(each, str) for each in prompt) or all(
        isinstance(each, list) for each in prompt
    ):
        return [each for each in prompt if not isinstance(each, int)]
    raise Invalid("`prompt` mixes strings and token ids", "prompt", "invalid_type")


async def _tokens(given: str | list[int], served: Served, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not given:
        raise Invalid("`prompt` is empty", "prompt", "invalid_value")
    if isinstance(given, list):
        _check_ids(given, served, "prompt")
        return tuple(given)
    most = served.max_context
    tokens = tuple(await threaded(len(given), lambda: tokenizer.encode(given, most=most)))
    if not tokens:
        raise Invalid("`prompt` has no tokens", "prompt", "invalid_value")
    return tokens


def _jobs(
    request: CompletionRequest | ChatRequest,
    name: str,
    prompts: Sequence[tuple[int, ...]],
    choices: int,
    served: Served,
    *,
    max_tokens: int | None,
    default: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> tuple[Job, ...]:
    seed = secrets.randbits(63) if request.seed is None else request.seed
    limits = [_room(len(prompt), max_tokens, default, served) for prompt in prompts]
    if request.min_tokens is not None and request.min_tokens > min(limits):
        raise Invalid(f"`min_tokens` is over the {min(limits)} tokens at most", "min_tokens")
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    sampling = Sampling(
        max_tokens=0,
        seed=0,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(0, _or(request.top_k, 0)),
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request, served),
        logprobs=logprobs,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=_stop_ids(request, served),
        prompt_logprobs=prompt_logprobs,
    )
    return tuple(
        Job(
            request=f"{name}{index * choices + choice:04x}",
            prompt=prompt,
            sampling=msgspec.structs.replace(
                sampling,
                # a prefill always samples a token: with `max_tokens` 0 it is made, and dropped
                max_tokens=max(1, limits[index]),
                seed=(seed + choice) & (2**63 - 1),
            ),
            stops=stops,
            wish=_wish(request.sps2),
            silent=limits[index] == 0,
            cache_salt=request.cache_salt or "",
            progress=bool(request.sps2 and request.sps2.progress),
            open_ended=max_tokens is None,
        )
        for index, prompt in enumerate(prompts)
        for choice in range(choices)
    )


def _wish(asked: Extension | None) -> Wish:
    if asked is None:
        return Wish()
    return Wish(asked.sp_degree, asked.attention, asked.method, asked.wire, asked.pipelined)


def _room(prompt: int, max_tokens: int | None, default: int, served: Served) -> int:
    """How many tokens may be generated after `prompt` tokens."""
    room = served.max_context - prompt
    if (max_tokens or 0) <= room and (room > 0 or max_tokens == 0):
        return min(default, room) if max_tokens is None else max_tokens
    wish = "" if max_tokens is None else f", and {max_tokens} are to be generated"
    raise Invalid(
        f"the model's context is {served.max_context} tokens; the prompt has {prompt}{wish}",
        "prompt" if room <= 0 else "max_tokens",
        "context_length_exceeded",
    )


def _logit_bias(request: Parameters, served: Served) -> dict[int, float]:
    bias = {}
    for token, value in (request.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise Invalid(f"`logit_bias` has {token[:40]!r} for a token id", "logit_bias")
        bias[int(token)] = value
    _check_ids(list(bias), served, "logit_bias")
    return bias


def _stop_ids(request: Parameters, served: Served) -> tuple[int, ...]:
    given = request.stop_token_ids or []
    _check_ids(given, served, "stop_token_ids")
    own = () if request.ignore_eos else served.eos_ids
    return tuple(dict.fromkeys([*own, *given]))


def _check_ids(ids: Sequence[int], served: Served, field: str) -> None:
    if ids and max(ids) >= served.vocab_size:
        raise Invalid(
            f"`{field}` has token id {max(ids)}; the model has ids 0 to {served.vocab_size - 1}",
            field,
            "invalid_value",
        )


def _or(value: R | None, default: R) -> R:
    return default if value is None else value
