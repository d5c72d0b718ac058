"""The API itself, the same over HTTP and the bus: requests in, streams of chunks out."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from functools import partial

from msgspec.structs import replace

from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    Delta,
    Detokenize,
    Estimate,
    EstimateRequest,
    Model,
    Models,
    Parameters,
    Text,
    Tokenize,
    Tokens,
)
from sps2.common.api.embeddings import EmbeddingRequest, Embeddings
from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.api.pins import PinPrompt
from sps2.common.api.prompt_answers import PromptTokens
from sps2.common.errors import Invalid
from sps2.common.messages import Pinned, Progress
from sps2.common.text.tokens import Tokenizer
from sps2.common.tracing import Trail
from sps2.services.gateway.chat_writer import ChatWriter
from sps2.services.gateway.completion_choices import CompletionWriter
from sps2.services.gateway.conversation import TOOL_CHARS, check_no_chat, tokens_of_chat
from sps2.services.gateway.correlation_ids import NOBODY, Caller
from sps2.services.gateway.embeddings import (
    completion_of,
    embeddings_of,
    inputs_named,
    order_embedding,
)
from sps2.services.gateway.generate import Record
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.limits import check_ids
from sps2.services.gateway.logprobs import vocabulary_of
from sps2.services.gateway.monitoring.request_metrics import Metrics
from sps2.services.gateway.monitoring.traces import AnswerTraces
from sps2.services.gateway.names import RANDOM, Names
from sps2.services.gateway.progress import Prompts
from sps2.services.gateway.prompt_tokens import prompt_tokens
from sps2.services.gateway.running import Running
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.slots import Slots
from sps2.services.gateway.threads import threaded
from sps2.services.gateway.tools.reading import check_tools
from sps2.services.gateway.turn_memory import Scope, TurnMemory
from sps2.services.gateway.usage import UsageSoFar, totals, usage
from sps2.services.gateway.validate import (
    Order,
    choices_of,
    order_chat,
    order_completion,
    order_estimate,
    prompt_of_chat,
)

COMPLETION = "cmpl-"
CHAT = "chatcmpl-"
EMBEDDING = "embd-"
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
        names: Names = RANDOM,
    ) -> None:
        self.names = names
        self.served = served
        self.metrics = metrics
        self.running = running
        self._tokenizer = tokenizer
        self._slots = slots
        self._traces = traces
        self.turns = TurnMemory(tokenizer)

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
            counted = UsageSoFar(request, order, records)
            writer = CompletionWriter(request, order, records, self._tokenizer)
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
            trail.annotate(**totals(total))
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
            scope = _scope(request, account)
            with trail.during("tokenise"):
                recall = self.turns.recall(scope)
                order = await order_chat(request, name, self.served, self._tokenizer, recall)
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
            counted = UsageSoFar(request, order, records)
            listener = self.turns.listener(request, scope, order.jobs)
            writer = ChatWriter(request, order.reading, vocabulary_of(request, self._tokenizer))
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
                            about = PromptTokens()
                            if len(begun) == 1:
                                job, record = order.jobs[index], records[index]
                                about = await prompt_tokens(request, job, record, self._tokenizer)
                            yield chunk(
                                choices=[opening],
                                usage=counted.usage(),
                                prompt_token_ids=about.prompt_token_ids,
                                prompt_logprobs=about.prompt_logprobs,
                            )
                        listener.sampled(index, piece)
                        for choice in writer.choices(index, piece):
                            listener.sent(choice)
                            yield chunk(choices=[choice], usage=counted.usage())
            total = usage(order.prompts, order.jobs, records, self.served.kv_token_bytes)
            self.metrics.spent(total)
            trail.annotate(**totals(total))
            yield chunk(choices=[], usage=total)

    async def embed(
        self,
        request: EmbeddingRequest,
        name: str,
        caller: Caller = NOBODY,
        account: Account | None = None,
        ordered: Callable[[], None] = nothing,
    ) -> Embeddings:
        """The vectors of texts; see `complete`."""
        asked = completion_of(request)
        with (
            inputs_named(),
            self.metrics.request(),
            self._trail(asked, name, EMBEDDING, caller) as trail,
            self._slots.take(choices_of(asked, self.served, self._slots.total)),
        ):
            since_s = time.monotonic()
            with trail.during("tokenise"):
                order = await order_embedding(request, asked, name, self.served, self._tokenizer)
            ordered()
            if account is not None:
                order = replace(order, jobs=account.own(order.prompts, order.jobs))
            records = [Record(since_s) for _ in order.jobs]
            with _spending(account, order, records):
                pieces = self.running.pieces(name, order, records, trail)
                async with aclosing(pieces):
                    async for _ in pieces:
                        pass
            total = usage(order.prompts, order.jobs, records, self.served.kv_token_bytes)
            self.metrics.spent(total)
            trail.annotate(**totals(total))
            return await embeddings_of(request, self.served.model, records, total)

    async def estimate(
        self, request: EstimateRequest, name: str, account: Account | None = None
    ) -> Estimate:
        """What is predicted of a request, without running it."""
        recall = self.turns.recall(_scope(request, account))
        job = await order_estimate(request, name, self.served, self._tokenizer, recall)
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

    async def pin(self, request: PinPrompt, name: str) -> Pinned:
        """Keep the cached pages of a prompt on disk, or do so no longer."""
        recall = self.turns.recall(_scope(request.asked, None))
        job = await order_estimate(request.asked, name, self.served, self._tokenizer, recall)
        return await self.running.pin(job, request.keep)

    async def count_tokens(self, request: ChatRequest, account: Account | None = None) -> int:
        """How many tokens the prompt of a chat has."""
        self.served.check_model(request.model)
        most = TOKENIZED_CONTEXTS * self.served.max_context
        recall = self.turns.recall(_scope(request, account))
        prompt, _ = await prompt_of_chat(request, self.served, self._tokenizer, most, recall)
        return len(prompt)

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
            tools = request.tools or ()
            await threaded(TOOL_CHARS * len(tools), lambda: check_tools(tools))
            ids = list(await tokens_of_chat(request, self._tokenizer, most, tools=tools))
        else:
            check_no_chat(request)
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


def _scope(request: Parameters, account: Account | None) -> Scope:
    return Scope("" if account is None else account.name, request.cache_salt or "")


def _spending(
    account: Account | None, order: Order, records: list[Record]
) -> AbstractContextManager[None]:
    return account.spending(order.prompts, order.jobs, records) if account else nullcontext()
