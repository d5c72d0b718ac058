"""The choices of a completion, from the pieces of its answers."""

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from sps2.common.api import CompletionChoice, CompletionLogprobs, CompletionRequest
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.echo import echo
from sps2.services.gateway.generate import Record
from sps2.services.gateway.logprobs import completion_logprobs, vocabulary_of
from sps2.services.gateway.prompt_tokens import prompt_tokens
from sps2.services.gateway.text import Piece
from sps2.services.gateway.threads import threaded
from sps2.services.gateway.validate import Order


class CompletionWriter:
    """Turns pieces into choices of a completion.

    The first chunk of each choice begins with the echo, if any, and has the prompt's tokens.
    """

    def __init__(
        self,
        request: CompletionRequest,
        order: Order,
        records: Sequence[Record],
        tokenizer: Tokenizer,
    ) -> None:
        self._request = request
        self._order = order
        self._records = records
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary_of(request, tokenizer)
        self._tells = bool(request.return_token_ids) or request.prompt_logprobs is not None
        self._bases: dict[int, int] = {}
        """Where the answer begins in the text of each choice that has begun."""

    async def choice(self, index: int, piece: Piece) -> CompletionChoice | None:
        """The part of choice `index` that a piece makes; None if it is empty."""
        request = self._request
        text, tokens, is_first = piece.text, piece.tokens, index not in self._bases
        before = None
        base = self._bases.setdefault(index, 0)
        if request.echo and is_first:
            echoed, before = await self._echo(index)
            self._bases[index] = base = len(echoed)
            text = echoed + text
        tells = is_first and self._tells
        if not (text or tokens or piece.finish or tells):
            return None
        listed = None
        if request.logprobs is not None:
            listed = completion_logprobs(tokens, request.logprobs, self._vocabulary, base)
            if before is not None:
                listed = before + listed
        stop = piece.stop or UNSET
        choice = CompletionChoice(index, text, listed, piece.finish, stop_reason=stop)
        if request.return_token_ids:
            choice = replace(choice, token_ids=piece.ids)
        if tells:
            job, record = self._order.jobs[index], self._records[index]
            about = await prompt_tokens(request, job, record, self._tokenizer)
            choice = replace(
                choice,
                prompt_token_ids=about.prompt_token_ids,
                prompt_logprobs=about.prompt_logprobs,
            )
        return choice

    async def _echo(self, index: int) -> tuple[str, CompletionLogprobs | None]:
        request, job = self._request, self._order.jobs[index]
        given = self._order.texts[index // (request.n or 1)]
        first = self._records[index].first
        logprobs = first.prompt_logprobs if first is not None else None

        def echoing() -> tuple[str, CompletionLogprobs | None]:
            text, spoken = echo(job.prompt, given, logprobs, self._tokenizer)
            if request.logprobs is None:
                return text, None
            return text, completion_logprobs(spoken, request.logprobs, self._vocabulary, 0)

        return await threaded(len(job.prompt) * (1 + (request.logprobs or 0)), echoing)
