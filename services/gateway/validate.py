"""Checks what the types of a request cannot express, and turns requests into jobs."""

import secrets
from collections.abc import Sequence
from functools import partial

import msgspec

from sps2.common.api import (
    ChatRequest,
    CompletionRequest,
    EstimateRequest,
    Extension,
    check,
)
from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions, Sampling
from sps2.common.text.tokens import Tokenizer
from sps2.common.words import counted
from sps2.services.gateway.conversation import TOOL_CHARS, Recall, forgotten, tokens_of_chat
from sps2.services.gateway.generate import Job
from sps2.services.gateway.grammars import checked, grammar_of
from sps2.services.gateway.limits import BAD, Limit
from sps2.services.gateway.prompts import check_prompt, prompts_of, tokens_of
from sps2.services.gateway.sampling import sampling_of
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.threads import threaded
from sps2.services.gateway.tools.reading import Reading, reading_of

DEFAULT_MAX_TOKENS = 16


class Order(msgspec.Struct, frozen=True):
    """A checked request; `jobs` are ordered by prompt, like the choices of the answer."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]
    """The prompts as given; None for a prompt of token ids, or one that was cut."""
    jobs: tuple[Job, ...]
    reading: Reading = Reading()
    """What the answers may contain besides text."""


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
    given = prompts_of(request)
    sampling = sampling_of(
        request,
        served,
        tokenizer,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        grammar=await grammar_of(request, tokenizer),
    )
    cut = request.truncate_prompt_tokens
    limit = Limit(
        served.max_context,
        request.max_tokens,
        DEFAULT_MAX_TOKENS,
        "prompt",
        cut,
        _cuts_answer(request),
    )
    for each in given:
        check_prompt(each, served, limit)

    special = request.add_special_tokens is not False
    prompts = [await tokens_of(each, tokenizer, limit, special) for each in given]
    return Order(
        tuple(prompts),
        tuple(each if isinstance(each, str) and cut is None else None for each in given),
        _jobs(request, name, prompts, choices, sampling, limit),
    )


async def order_chat(
    request: ChatRequest,
    name: str,
    served: Served,
    tokenizer: Tokenizer,
    recall: Recall = forgotten,
) -> Order:
    """The jobs of an answer in a conversation; see `order_completion` and `prompt_of_chat`."""
    served.check_model(request.model)
    choices = _choices(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise Invalid("`top_logprobs` needs `logprobs` to be true", "top_logprobs", BAD)
    sampling = sampling_of(
        request,
        served,
        tokenizer,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=None,
        grammar=await grammar_of(request, tokenizer),
    )
    max_tokens = request.max_completion_tokens or request.max_tokens
    default = served.default_max_tokens or served.max_context
    cut = request.truncate_prompt_tokens
    limit = Limit(served.max_context, max_tokens, default, "messages", cut, _cuts_answer(request))

    prompt, reading = await prompt_of_chat(request, served, tokenizer, limit.most, recall)
    prompt = limit.cut(prompt)
    reading = reading.opened_by(prompt, tokenizer)
    if (make := reading.grammar(sampling.grammar, tokenizer)) is not None:
        field = "tools" if reading.tools else "response_format"
        grammar = await checked(field, make, tokenizer)
        sampling = msgspec.structs.replace(sampling, grammar=grammar)
    shown = reading.shown(tokenizer)
    jobs = _jobs(request, name, [prompt], choices, sampling, limit, shown)
    return Order((prompt,), (None,), jobs, reading)


async def prompt_of_chat(
    request: ChatRequest, served: Served, tokenizer: Tokenizer, most: int, recall: Recall
) -> tuple[tuple[int, ...], Reading]:
    """The prompt of a chat, before it is cut, and how its answers are read.

    Raises:
        Invalid: see `reading_of` and `tokens_of_chat`.
    """
    read = partial(reading_of, request, served.tool_parser, served.reasoning_parser)
    reading = await threaded(TOOL_CHARS * len(request.tools or ()), read)
    return await tokens_of_chat(request, tokenizer, most, recall, reading.tools), reading


async def order_estimate(
    request: EstimateRequest,
    name: str,
    served: Served,
    tokenizer: Tokenizer,
    recall: Recall = forgotten,
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
        order = await order_chat(check(given, ChatRequest), name, served, tokenizer, recall)
    else:
        order = await order_completion(check(given, CompletionRequest), name, served, tokenizer)
    if len(order.jobs) > 1:
        raise Invalid(
            "an estimate is of one answer to one prompt: ask for each by itself",
            "n" if len(order.prompts) == 1 else "prompt",
            BAD,
        )
    return order.jobs[0]


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


def _jobs(
    request: CompletionRequest | ChatRequest,
    name: str,
    prompts: Sequence[tuple[int, ...]],
    choices: int,
    sampling: Sampling,
    limit: Limit,
    shown: frozenset[int] = frozenset(),
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
            open_ended=limit.open_ended,
            priority=extension.priority or 0,
            max_ttft_s=None if extension.max_ttft_ms is None else extension.max_ttft_ms / 1000,
            shown=shown,
            shows_special=request.skip_special_tokens is False,
            shows_stop=bool(request.include_stop_str_in_output),
        )
        for index, prompt in enumerate(prompts)
        for choice in range(choices)
    )


def _cuts_answer(request: CompletionRequest | ChatRequest) -> bool:
    return bool(request.sps2 and request.sps2.cut_max_tokens)


def _options(given: Extension) -> PrefillOptions:
    return PrefillOptions(
        given.sp_degree,
        given.attention,
        given.method,
        given.kv_transfer_dtype,
        given.pipelined,
        given.lossless,
    )
