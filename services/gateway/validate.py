"""Checks what the types of a request cannot express, and turns requests into jobs."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from sps2.common.api import (
    ChatRequest,
    CompletionRequest,
    EstimateRequest,
    Extension,
    Message,
    Parameters,
    check,
)
from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions, Sampling
from sps2.common.text.tokens import Tokenizer
from sps2.common.words import counted
from sps2.services.gateway.generate import Job
from sps2.services.gateway.served_model import Served
from sps2.services.memory import give_back

R = TypeVar("R")

BAD = "invalid_value"

DEFAULT_MAX_TOKENS = 16
TURN_CHARS = 32
"""Estimated size of a conversation turn besides its content, in characters."""
COLD = 1e-5
"""Temperatures below this are greedy: logits over less would overflow."""
LONG_TEXT = 4096
"""Characters from which on a text is tokenised in a thread."""
HUGE_TEXT = 64 << 10
"""Characters from which on the memory used for that is given back at once."""


class Order(msgspec.Struct, frozen=True):
    """A checked request; `jobs` are ordered by prompt, like the choices of the answer."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]
    """The prompts as given; None for a prompt of token ids."""
    jobs: tuple[Job, ...]


async def order_completion(
    request: CompletionRequest, name: str, served: Served, tokenizer: Tokenizer
) -> Order:
    """The jobs of a completion. Raises Invalid, naming the wrong field.

    Cheap checks come first, before anything is tokenised.
    """
    served.check_model(request.model)
    choices = _choices(request)
    if request.best_of not in (None, 1, choices):
        raise Invalid("`best_of` other than `n` is not supported", "best_of", UNSUPPORTED)
    if request.max_tokens == 0 and not request.echo:
        raise Invalid("`max_tokens` must be at least 1 unless `echo` is set", "max_tokens", BAD)
    given = _prompts(request)
    sampling = _sampling(
        request,
        served,
        tokenizer,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )
    limit = _Limit(served.max_context, request.max_tokens, DEFAULT_MAX_TOKENS, "prompt")
    for each in given:
        _check_prompt(each, served, limit)

    prompts = [await _tokens(each, tokenizer, served.max_context) for each in given]
    return Order(
        tuple(prompts),
        tuple(each if isinstance(each, str) else None for each in given),
        _jobs(request, name, prompts, choices, sampling, limit),
    )


async def order_chat(
    request: ChatRequest, name: str, served: Served, tokenizer: Tokenizer
) -> Order:
    """The jobs of an answer in a conversation; see `order_completion`."""
    served.check_model(request.model)
    choices = _choices(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise Invalid("`top_logprobs` needs `logprobs` to be true", "top_logprobs", BAD)
    sampling = _sampling(
        request,
        served,
        tokenizer,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=None,
    )
    max_tokens = request.max_completion_tokens or request.max_tokens
    default = served.default_max_tokens or served.max_context
    limit = _Limit(served.max_context, max_tokens, default, "messages")

    prompt = await tokens_of_chat(request.messages, tokenizer, served.max_context)
    return Order((prompt,), (None,), _jobs(request, name, [prompt], choices, sampling, limit))


async def order_estimate(
    request: EstimateRequest, name: str, served: Served, tokenizer: Tokenizer
) -> Job:
    """The one job of a completion or chat whose costs are asked for. Raises Invalid."""
    if (request.prompt is None) == (request.messages is None):
        raise Invalid("give either `prompt` or `messages`", "prompt", BAD)
    given = {
        field: value
        for field in EstimateRequest.__struct_fields__
        if (value := getattr(request, field)) is not None
    }
    if request.messages is not None:
        order = await order_chat(check(given, ChatRequest), name, served, tokenizer)
    else:
        order = await order_completion(check(given, CompletionRequest), name, served, tokenizer)
    if len(order.jobs) > 1:
        raise Invalid(
            "an estimate is of one answer to one prompt: ask for each by itself",
            "n" if len(order.prompts) == 1 else "prompt",
            BAD,
        )
    return order.jobs[0]


async def tokens_of_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, most: int, answering: bool = True
) -> tuple[int, ...]:
    """Token ids of a conversation, ready for the assistant's answer if `answering`.

    Raises Invalid if there are far more than `most`.
    """
    turns = [_turn(message) for message in messages]
    size = sum(TURN_CHARS + len(turn["content"]) for turn in turns)
    return tuple(await threaded(size, lambda: tokenizer.chat(turns, answering, most)))


async def threaded(size: int, work: Callable[[], R]) -> R:
    """Run `work`, in a thread if its text is long."""

    def frugally() -> R:
        try:
            return work()
        finally:
            if size >= HUGE_TEXT:
                give_back()

    return await asyncio.to_thread(frugally) if size >= LONG_TEXT else work()


def _turn(message: Message) -> dict[str, Any]:
    # templates have no developer role: OpenAI's newer name for the system role
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.said}


def choices_of(request: CompletionRequest | ChatRequest, served: Served, most: int) -> int:
    """How many choices a request wants, for all its prompts together.

    Raises Invalid if there are too many for one prompt, or more than `most` in all.
    """
    prompts, choices = 1, request.n or 1
    if isinstance(request, CompletionRequest) and isinstance(request.prompt, list):
        is_ids = not request.prompt or isinstance(request.prompt[0], int)
        prompts = 1 if is_ids else len(request.prompt)
    if choices > served.max_choices:
        raise Invalid(f"`n` must be at most {served.max_choices} (gateway.max_choices)", "n", BAD)
    if prompts * choices > most:
        what = counted(prompts, "prompt") + (f" with `n` {choices}" if choices > 1 else "")
        raise Invalid(
            f"one request may have {counted(most, 'answer')} at most (gateway.max_requests); "
            f"this one has {what}: send several requests",
            "prompt" if prompts > 1 else "n",
            BAD,
        )
    return prompts * choices


def _choices(request: CompletionRequest | ChatRequest) -> int:
    if request.stream_options is not None and not request.stream:
        raise Invalid("`stream_options` needs `stream` to be true", "stream_options", BAD)
    return request.n or 1


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Invalid("`prompt` is empty", "prompt", BAD)
    if all(isinstance(each, int) for each in prompt):
        return [[each for each in prompt if isinstance(each, int)]]
    if all(isinstance(each, str) for each in prompt) or all(
        isinstance(each, list) for each in prompt
    ):
        return [each for each in prompt if not isinstance(each, int)]
    raise Invalid("`prompt` mixes strings and token ids", "prompt", BAD)


def _check_prompt(given: str | list[int], served: Served, limit: "_Limit") -> None:
    """Raise Invalid if a prompt is wrong, as far as can be seen before it is tokenised."""
    if not given:
        raise Invalid("`prompt` is empty", "prompt", BAD)
    if isinstance(given, list):
        check_ids(given, served, "prompt")
        limit.room(len(given))


async def _tokens(given: str | list[int], tokenizer: Tokenizer, most: int) -> tuple[int, ...]:
    if isinstance(given, list):
        return tuple(given)
    tokens = tuple(await threaded(len(given), lambda: tokenizer.encode(given, most=most)))
    if not tokens:
        raise Invalid("`prompt` has no tokens", "prompt", BAD)
    return tokens


def _jobs(
    request: CompletionRequest | ChatRequest,
    name: str,
    prompts: Sequence[tuple[int, ...]],
    choices: int,
    sampling: Sampling,
    limit: "_Limit",
) -> tuple[Job, ...]:
    extension = request.sps2 or Extension()
    seed = secrets.randbits(63) if request.seed is None else request.seed
    rooms = [limit.room(len(prompt)) for prompt in prompts]
    if sampling.min_tokens > min(rooms):
        raise Invalid(
            f"`min_tokens` is {sampling.min_tokens}; the answer may have "
            f"{counted(min(rooms), 'token')} at most",
            "min_tokens",
            BAD,
        )
    given = (request.stop,) if isinstance(request.stop, str) else request.stop or ()
    return tuple(
        Job(
            request=f"{name}{index * choices + choice:04x}",
            prompt=prompt,
            sampling=msgspec.structs.replace(
                sampling,
                # a prefill always samples a token: with `max_tokens` 0 it is dropped
                max_tokens=max(1, rooms[index]),
                seed=(seed + choice) & (2**63 - 1),
            ),
            stops=tuple(filter(None, given)),
            options=_options(extension),
            silent=rooms[index] == 0,
            cache_salt=request.cache_salt or "",
            progress=bool(extension.progress),
            open_ended=limit.max_tokens is None,
            priority=extension.priority or 0,
            max_ttft_s=None if extension.max_ttft_ms is None else extension.max_ttft_ms / 1000,
        )
        for index, prompt in enumerate(prompts)
        for choice in range(choices)
    )


def _sampling(
    request: CompletionRequest | ChatRequest,
    served: Served,
    tokenizer: Tokenizer,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> Sampling:
    """Sampling options without seed and limit; fields that are not set get the defaults."""
    wanted = served.sampling_defaults
    temperature = _or(request.temperature, _or(wanted.temperature, 1.0))
    top_p = _or(request.top_p, _or(wanted.top_p, 1.0))
    return Sampling(
        max_tokens=0,
        seed=0,
        temperature=0.0 if temperature < COLD or top_p == 0 else temperature,
        top_p=top_p or 1.0,
        top_k=max(0, _or(request.top_k, _or(wanted.top_k, 0))),
        min_p=_or(request.min_p, _or(wanted.min_p, 0.0)),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, _or(wanted.repetition_penalty, 1.0)),
        logit_bias=_logit_bias(request, served),
        logprobs=logprobs,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=_stop_ids(request, served, tokenizer),
        prompt_logprobs=prompt_logprobs,
    )


class _Limit(NamedTuple):
    """Limits of the tokens that may be generated.

    field: the field of the request that has the prompt.
    """

    max_context: int
    max_tokens: int | None
    default: int
    field: str

    def room(self, prompt: int) -> int:
        """Most tokens after `prompt` tokens of prompt. Raises Invalid if they do not fit."""
        room, requested = self.max_context - prompt, self.max_tokens
        if (requested or 0) <= room and (room > 0 or requested == 0):
            return min(self.default, room) if requested is None else requested
        options = "" if requested is None else f", and `max_tokens` is {requested}"
        raise Invalid(
            f"the model's context is {self.max_context} tokens; the prompt has {prompt}{options}",
            self.field if room <= 0 else "max_tokens",
            "context_length_exceeded",
        )


def _options(given: Extension) -> PrefillOptions:
    return PrefillOptions(
        given.sp_degree, given.attention, given.method, given.kv_transfer_dtype, given.pipelined
    )


def _logit_bias(request: Parameters, served: Served) -> dict[int, float]:
    bias = {}
    for token, value in (request.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise Invalid(f"`logit_bias` has {token[:40]!r} for a token id", "logit_bias", BAD)
        bias[int(token)] = value
    check_ids(list(bias), served, "logit_bias")
    return bias


def _stop_ids(request: Parameters, served: Served, tokenizer: Tokenizer) -> tuple[int, ...]:
    given = request.stop_token_ids or []
    check_ids(given, served, "stop_token_ids")
    own = () if request.ignore_eos else served.eos_ids
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    # the text of a special token is not shown, so stop strings cannot be found in it
    special = [tokenizer.special[stop] for stop in stops if stop in tokenizer.special]
    return tuple(dict.fromkeys([*own, *given, *special]))


def check_ids(ids: Sequence[int], served: Served, field: str) -> None:
    """Raise Invalid, naming the field, if the model lacks any of these token ids."""
    if ids and max(ids) >= served.vocab_size:
        raise Invalid(
            f"`{field}` has token id {max(ids)}; the model has ids 0 to {served.vocab_size - 1}",
            field,
            BAD,
        )


def _or(value: R | None, default: R) -> R:
    return default if value is None else value
