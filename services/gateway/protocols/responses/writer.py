"""Turns the chunks of a chat into the events of the Responses API, and into the whole response."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import count

from msgspec.structs import replace

from sps2.common.api import ChatChunk, ChatDelta
from sps2.common.api.usage import Usage as ChatUsage
from sps2.common.errors import Internal
from sps2.services.gateway.http.framing import Framing, event
from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.protocols.responses import events
from sps2.services.gateway.protocols.responses.answers import (
    Failure,
    Incomplete,
    InputDetails,
    ItemStatus,
    Output,
    Response,
    Status,
    Usage,
)
from sps2.services.gateway.protocols.responses.open_items import (
    OpenCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
)


class ResponseWriter:
    """The response of one answer.

    Args:
        response: as it is before there is any output.
        ended: called with the whole response, before its last event.
    """

    def __init__(self, response: Response, ended: Callable[[Response], None]) -> None:
        self.response = response
        self._ended = ended
        self._numbers = count()
        self._begun = False
        self._open: OpenItem | None = None
        self._output: list[Output] = []
        self._cut = False
        self._usage: ChatUsage | None = None

    async def streamed(
        self, chunks: AsyncGenerator[ChatChunk, None]
    ) -> AsyncGenerator[events.Event, None]:
        """The events of a stream, as the chunks come; the first begins with the first chunk.

        Raises:
            Internal: the usage is missing.
        """
        async with aclosing(chunks):
            async for chunk in chunks:
                for each in self._beginning():
                    yield each
                self._usage = chunk.usage or self._usage
                for choice in chunk.choices:
                    for each in self._add(choice):
                        yield each
        for each in self._close("incomplete" if self._cut else "completed"):
            yield each
        yield self._end()

    async def whole(self, chunks: AsyncGenerator[ChatChunk, None]) -> Response:
        """The whole response. Raises Internal if the usage is missing."""
        async for _ in self.streamed(chunks):
            pass
        return self.response

    def fail(self, report: ErrorReport) -> events.Failed:
        """End the response with an error, and return the event that says so."""
        failure = Failure(report.code or "server_error", report.message)
        self._finish("failed", error=failure)
        return events.Failed(sequence_number=next(self._numbers), response=self.response)

    def cancel(self) -> None:
        """End the response as cancelled."""
        self._finish("cancelled")

    def pause(self) -> Iterator[events.Event]:
        """The events of a pause: the first ones, if they were not yet sent, or a sign of life."""
        if self._begun:
            yield self._in_progress()
        yield from self._beginning()

    def _beginning(self) -> Iterator[events.Event]:
        if not self._begun:
            self._begun = True
            yield events.Created(sequence_number=next(self._numbers), response=self.response)
            yield self._in_progress()

    def _in_progress(self) -> events.Event:
        return events.InProgress(sequence_number=next(self._numbers), response=self.response)

    def _add(self, choice: ChatDelta) -> Iterator[events.Event]:
        delta = choice.delta
        if delta.reasoning_content:
            if not isinstance(self._open, OpenReasoning):
                yield from self._opened(OpenReasoning)
            assert isinstance(self._open, OpenReasoning)
            yield self._open.add(delta.reasoning_content)
        listed = tuple(choice.logprobs.content) if choice.logprobs else ()
        if delta.content:
            if not isinstance(self._open, OpenMessage):
                yield from self._opened(OpenMessage)
            assert isinstance(self._open, OpenMessage)
            yield self._open.add(delta.content, listed)
        for call in delta.tool_calls or ():
            is_same = isinstance(self._open, OpenCall) and self._open.number == call.index
            if not is_same:
                name = call.function.name or ""
                make = partial(OpenCall, number=call.index, call_id=call.id or "", name=name)
                yield from self._opened(make)
            assert isinstance(self._open, OpenCall)
            if call.function.arguments:
                yield self._open.add(call.function.arguments)
        if choice.finish_reason is not None:
            self._cut = choice.finish_reason == "length"

    def _opened(self, make: Callable[[Iterator[int], int], OpenItem]) -> Iterator[events.Event]:
        yield from self._close("completed")
        self._open = make(self._numbers, len(self._output))
        yield from self._open.begin()

    def _close(self, status: ItemStatus) -> Iterator[events.Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._output.append(self._open.item(status))
            self._open = None

    def _end(self) -> events.Event:
        if self._usage is None:
            raise Internal("the answer ended without its usage")
        usage = Usage(
            self._usage.prompt_tokens,
            self._usage.completion_tokens,
            self._usage.total_tokens,
            InputDetails(self._usage.prompt_tokens_details.cached_tokens),
        )
        if self._cut:
            why = Incomplete("max_output_tokens")
            self._finish("incomplete", usage=usage, incomplete_details=why)
        else:
            self._finish("completed", usage=usage)
        kind = events.Incomplete if self._cut else events.Completed
        return kind(sequence_number=next(self._numbers), response=self.response)

    def _finish(self, status: Status, **changes: object) -> None:
        output = tuple(self._output)
        if self._open is not None:
            output = *output, self._open.item("incomplete")
        self.response = replace(self.response, status=status, output=output, **changes)
        self._ended(self.response)


class ResponseFraming(Framing):
    """Events with their types as names; a pause is an event too, since comments reset no timer
    of some clients.
    """

    done = b""

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer

    @property
    def still_here(self) -> bytes:
        return b"".join(map(self.written, self._writer.pause()))

    def written(self, value: object) -> bytes:
        kind = type(value)
        assert issubclass(kind, events.Event)
        return event(value, str(kind.__struct_config__.tag))

    def failed(self, report: ErrorReport) -> bytes:
        return self.written(self._writer.fail(report))
