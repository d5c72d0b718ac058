"""The API itself, the same over HTTP and the bus: requests in, streams of chunks out."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from functools import partial

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    ChatRequest,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    Detokenize,
    Estimate,
    EstimateRequest,
    Model,
    Models,
    Text,
    Tokenize,
    Tokens,
)
from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.api.usage import Usage
from sps2.common.errors import Invalid
from sps2.common.messages import Progress
from sps2.common.text.tokens import Tokenizer
from sps2.common.tracing import Trail
from sps2.services.gateway.correlation_ids import NOBODY, Caller
from sps2.services.gateway.echo import echo
from sps2.services.gateway.generate import Record
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.logprobs import chat_logprobs, completion_logprobs
from sps2.services.gateway.monitoring.request_metrics import Metrics
from sps2.services.gateway.monitoring.traces import AnswerTraces
from sps2.services.gateway.progress import Prompts
from sps2.services.gateway.running import Running
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.slots import Slots
from sps2.services.gateway.text import Piece
from sps2.services.gateway.usage import usage
from sps2.services.gateway.validate import (
    Order,
    check_ids,
    choices_of,
    order_chat,
    order_completion,
    order_estimate,
    threaded,
    tokens_of_chat,
)

COMPLETION = "cmpl-"
CHAT = "chatcmpl-"
TOKENIZED_CONTEXTS = 16
"""A text that is only tokenised may have this many times the tokens of the context."""


def nothing() -> None:
    """Do nothing."""


class Gateway:
    """Answers requests; every error is one of `sps2.common.errors`."""

    def __init__(
        self,
        served: Served,
        tokenizer: Tokenizer,
        running: Running,
        slots: Slots,
        metrics: Metrics,
        traces: AnswerTraces,
    ) -> None:
        self.served = served
        self.metrics = metrics
        self.running = running
        self._tokenizer = tokenizer
        self._slots = slots
        self._traces = traces

    async def complete(
        self,
        request: CompletionRequest,
        name: str,
        caller: Caller = NOBODY,
        account: Account | None = None,
        ordered: Callable[[], None] = nothing,
    ) -> AsyncGenerator[CompletionChunk, None]:
        """The chunks of a completion; the last has no choices, only the usage.

        Args:
            name: 12 hexadecimal digits, unique: the answer's id without its prefix.
            caller: the client's ids, by which its trace can be found.
            account: the account that the tokens count for, if any.
            ordered: called when all is tokenised and the request's text is no longer needed.
        """
        with (
            self.metrics.request(),
            self._trail(request, name, COMPLETION, caller) as trail,
            self._slots.take(choices_of(request, self.served, self._slots.total)),
        ):
            since_s = time.monotonic()
            with trail.during("tokenise"):
                order = await order_completion(request, name, self.served, self._tokenizer)
            ordered()
            if account is not None:
                order = replace(order, jobs=account.own(order.prompts, order.jobs))
            records = [Record(since_s) for _ in order.jobs]
            chunk = partial(
                CompletionChunk,
                id=f"{COMPLETION}{name}",
                created=int(time.time()),
                model=self.served.model,
                system_fingerprint=self.served.fingerprint,
            )
            prompts = Prompts(order.jobs)
            counted = _Counted(request, order)
            writer = _CompletionWriter(request, order, records, self._tokenizer)
            with _spending(account, order, records):
                pieces = self.running.pieces(name, order, records, trail)
                async with aclosing(pieces):
                    async for index, piece in pieces:
                        if isinstance(piece, Progress):
                            extension = prompts.add(index, piece)
                            yield chunk(choices=[], sps2=extension, usage=counted.usage())
                            continue
                        counted.add(index)
                        if (choice := await writer.choice(index, piece)) is not None:
                            yield chunk(choices=[choice], usage=counted.usage())
            total = usage(order.prompts, order.jobs, records, self.served.kv_token_bytes)
            self.metrics.spent(total)
            trail.annotate(**_totals(total))
            yield chunk(choices=[], usage=total)

    async def chat(
        self,
        request: ChatRequest,
        name: str,
        caller: Caller = NOBODY,
        account: Account | None = None,
        ordered: Callable[[], None] = nothing,
    ) -> AsyncGenerator[ChatChunk, None]:
        """The chunks of an answer in a conversation; see `complete`."""
        with (
            self.metrics.request(),
            self._trail(request, name, CHAT, caller) as trail,
            self._slots.take(choices_of(request, self.served, self._slots.total)),
        ):
            since_s = time.monotonic()
            with trail.during("tokenise"):
                order = await order_chat(request, name, self.served, self._tokenizer)
            ordered()
            if account is not None:
                order = replace(order, jobs=account.own(order.prompts, order.jobs))
            records = [Record(since_s) for _ in order.jobs]
            chunk = partial(
                ChatChunk,
                id=f"{CHAT}{name}",
                created=int(time.time()),
                model=self.served.model,
                system_fingerprint=self.served.fingerprint,
            )
            prompts = Prompts(order.jobs)
            counted = _Counted(request, order)
            begun: set[int] = set()
            with _spending(account, order, records):
                pieces = self.running.pieces(name, order, records, trail)
                async with aclosing(pieces):
                    async for index, piece in pieces:
                        if isinstance(piece, Progress):
                            extension = prompts.add(index, piece)
                            yield chunk(choices=[], sps2=extension, usage=counted.usage())
                            continue
                        counted.add(index)
                        if index not in begun:
                            begun.add(index)
                            opening = ChatDelta(index, Delta("assistant", ""))
                            yield chunk(choices=[opening], usage=counted.usage())
                        if (choice := self._chat_choice(request, index, piece)) is not None:
                            yield chunk(choices=[choice], usage=counted.usage())
            total = usage(order.prompts, order.jobs, records, self.served.kv_token_bytes)
            self.metrics.spent(total)
            trail.annotate(**_totals(total))
            yield chunk(choices=[], usage=total)

    async def estimate(
        self, request: EstimateRequest, name: str, account: Account | None = None
    ) -> Estimate:
        """What is predicted of a request, without running it."""
        job = await order_estimate(request, name, self.served, self._tokenizer)
        if account is not None:
            (job,) = account.own([job.prompt], [job])
        found = await self.running.predict(job)
        return Estimate(
            prompt_tokens=len(job.prompt),
            cached_tokens=found.cached_tokens,
            ttft_ms=None if found.waits_for else 1000 * (found.queue_s + found.prefill_s),
            queue_ms=1000 * found.queue_s,
            tbt_ms=None if found.tbt_s is None else 1000 * found.tbt_s,
            sp_degree=found.sp_degree,
            method=found.scheme.method,
            exchange_bytes=sum(found.predicted_bytes.values()),
            waits_for=found.waits_for,
        )

    async def tokenize(self, request: Tokenize) -> Tokens:
        """Token ids of a text or a conversation."""
        self.served.check_model(request.model)
        prompt, messages = request.prompt, request.messages
        if (prompt is None) == (messages is None):
            raise Invalid("give either `prompt` or `messages`", "prompt", "invalid_value")
        most, special = TOKENIZED_CONTEXTS * self.served.max_context, request.add_special_tokens
        if messages is not None:
            if special:
                raise Invalid(
                    "`add_special_tokens` is not supported for `messages`: the model's chat "
                    "template has them; leave it out, or send false",
                    "add_special_tokens",
                    UNSUPPORTED,
                )
            answering = request.add_generation_prompt is not False
            ids = list(await tokens_of_chat(messages, self._tokenizer, most, answering))
        else:
            text = prompt or ""
            encode = partial(self._tokenizer.encode, text, special is not False, most=most)
            ids = await threaded(len(text), encode)
        tokens = Tokens(ids, len(ids), self.served.max_context)
        if not request.return_token_strs:
            return tokens

        def spelled() -> list[str]:
            return [self._tokenizer.token_text(each) for each in ids]

        return replace(tokens, token_strs=await threaded(len(ids), spelled))

    async def detokenize(self, request: Detokenize) -> Text:
        """The text of token ids, special tokens included."""
        self.served.check_model(request.model)
        ids = request.tokens
        check_ids(ids, self.served, "tokens")
        return Text(await threaded(len(ids), lambda: self._tokenizer.decode(ids, False)))

    def models(self) -> Models:
        """The one model served, by each of its names."""
        return Models([self.model(name) for name in self.served.names])

    def model(self, name: str) -> Model:
        """The served model, by one of its names. Raises Invalid if `name` is not one of them."""
        served = self.served
        served.check_model(name)
        defaults = served.sampling_defaults
        return Model(
            id=name,
            created=served.created,
            root=served.model,
            max_model_len=served.max_context,
            sampling_defaults={
                field: value
                for field in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
                if (value := getattr(defaults, field)) is not None
            },
        )

    @contextmanager
    def entered(self, name: str, prefix: str, caller: Caller) -> Iterator[None]:
        """Count and trace a failure in the block, before an answer begins.

        Raises:
            Refused: all slots are in use; so nothing is done for the request.
        """
        try:
            self._slots.check()
            yield
        except Exception:
            with self.metrics.request(), self._traces.answer(name, prefix, caller):
                raise

    def _trail(
        self, request: CompletionRequest | ChatRequest, name: str, prefix: str, caller: Caller
    ) -> AbstractContextManager[Trail]:
        traceparent = request.sps2.traceparent if request.sps2 else None
        if traceparent and not caller.traceparent:
            caller = caller._replace(traceparent=traceparent)
        return self._traces.answer(name, prefix, caller)

    def _chat_choice(self, request: ChatRequest, index: int, piece: Piece) -> ChatDelta | None:
        if not (piece.text or piece.tokens or piece.finish):
            return None
        logprobs = None
        if request.logprobs:
            logprobs = chat_logprobs(piece.tokens, request.top_logprobs or 0, self._tokenizer)
        return ChatDelta(index, Delta(content=piece.text), logprobs, piece.finish)


def _spending(
    account: Account | None, order: Order, records: list[Record]
) -> AbstractContextManager[None]:
    return account.spending(order.prompts, order.jobs, records) if account else nullcontext()


class _Counted:
    """The usage so far, for each chunk; UNSET unless the request wants it."""

    def __init__(self, request: CompletionRequest | ChatRequest, order: Order) -> None:
        options = request.stream_options
        self._wanted = bool(options and options.include_usage and options.continuous_usage_stats)
        self._prompt_tokens = sum(map(len, order.prompts))
        self._order = order
        self._made = 0

    def add(self, index: int) -> None:
        """Count a token of choice `index`."""
        self._made += not self._order.jobs[index].silent

    def usage(self) -> Usage | UnsetType:
        if not self._wanted:
            return UNSET
        return Usage(self._prompt_tokens, self._made, self._prompt_tokens + self._made)


def _totals(usage: Usage) -> dict[str, str | float]:
    """The totals of a whole request, for its trace."""
    totals: dict[str, str | float] = {
        "prompt_tokens": usage.prompt_tokens,
        "tokens": usage.completion_tokens,
    }
    return totals if usage.sps2 is None else totals | {"ttft_s": usage.sps2.ttft_ms / 1000}


class _CompletionWriter:
    """Turns pieces into choices of a completion.

    The first chunk of each choice begins with the echo, if any.
    """

    def __init__(
        self,
        request: CompletionRequest,
        order: Order,
        records: list[Record],
        tokenizer: Tokenizer,
    ) -> None:
        self._request = request
        self._order = order
        self._records = records
        self._tokenizer = tokenizer
        self._bases: dict[int, int] = {}

    async def choice(self, index: int, piece: Piece) -> CompletionChoice | None:
        request = self._request
        text, tokens, base = piece.text, piece.tokens, self._bases.get(index, 0)
        before = None
        if request.echo and index not in self._bases:
            job = self._order.jobs[index]
            given = self._order.texts[index // (request.n or 1)]
            first = self._records[index].first
            logprobs = first.prompt_logprobs if first is not None else None

            def echoing() -> tuple[str, CompletionLogprobs | None]:
                text, spoken = echo(job.prompt, given, logprobs, self._tokenizer)
                if request.logprobs is None:
                    return text, None
                return text, completion_logprobs(spoken, request.logprobs, self._tokenizer, 0)

            alternatives = 1 + (request.logprobs or 0)
            echoed, before = await threaded(len(job.prompt) * alternatives, echoing)
            self._bases[index] = base = len(echoed)
            text = echoed + text
        if not (text or tokens or piece.finish):
            return None
        if request.logprobs is None:
            return CompletionChoice(index, text, None, piece.finish)

        listed = completion_logprobs(tokens, request.logprobs, self._tokenizer, base)
        if before is not None:
            listed = before + listed
        return CompletionChoice(index, text, listed, piece.finish)
