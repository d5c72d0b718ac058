"""The SDK: completions, chat and status of a cluster over its bus; imports no torch."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from sps2.common import api
from sps2.common.api import (
    Chat,
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
    Detokenize,
    Estimate,
    EstimateRequest,
    ListModels,
    Model,
    Tokenize,
)
from sps2.common.api.collect import collect_chat, collect_completion
from sps2.common.bus.gateways import Gateways
from sps2.common.client_parameters import (
    ChatParameters,
    CompletionParameters,
    Messages,
    Prompt,
    Turn,
)
from sps2.common.config import Bus, environment_bus
from sps2.common.errors import Cancelled, Invalid, PeerLost
from sps2.common.messages import CancelRequest, ClusterStatus, Request, ShowCluster, Stream

__all__ = [
    "ADDRESS",
    "AsyncClient",
    "ChatParameters",
    "Client",
    "CompletionParameters",
    "Messages",
    "Prompt",
    "Turn",
]

T = TypeVar("T")

ADDRESS = "tcp://127.0.0.1:8001"
CONNECT_S = 30.0
ANSWER_S = 30.0
"""Timeout of calls that are not completions."""
_OF_THE_CLIENT = {"timeout_s": "timeout_s", "timeout": "timeout_s", "connect_s": "connect_s"}
"""Arguments of the client that callers may mistake for parameters of a call."""


class AsyncClient:
    """A client of the cluster with a gateway at `address`. Close it, or use `async with`.

    All calls raise the errors of `sps2.common.errors`.
    """

    def __init__(
        self,
        address: str | Sequence[str] = ADDRESS,
        bus: Bus | None = None,
        *,
        connect_s: float | None = CONNECT_S,
        timeout_s: float | None = None,
    ) -> None:
        """The client connects at the first call.

        Args:
            address: of the gateway on the bus; `spsctl up` prints it as SDK. Of several gateways
                all: a call goes to one that answers.
            bus: names this client's keys if the cluster has keys: `Bus(keys="alice.key")`. None
                uses the keys that SPS2_KEYS names.
            connect_s: how long a call waits for a gateway that does not answer before it raises
                PeerLost. An unknown host name raises it at once. None waits for ever.
            timeout_s: how long a whole call may last before it raises Cancelled; for a stream,
                from its start to its last chunk. None: no limit for completions and chats, 30 s
                for all other calls.
        """
        addresses = [address] if isinstance(address, str) else address
        self._peer = Gateways(addresses, bus or environment_bus(), connect_s=connect_s)
        self._timeout_s = timeout_s

    async def complete(
        self, prompt: Prompt, **parameters: Unpack[CompletionParameters]
    ) -> Completion:
        """Return the whole answer to a prompt. Cancelling the caller's task cancels the request.

        Raises:
            Invalid: a parameter is wrong; `field` names it.
            Refused: no room now, or the cluster is not ready.
            PeerLost: the gateway or a service that the request needs was lost.
        """
        async with aclosing(self.complete_stream(prompt, **parameters)) as chunks:
            return await collect_completion(chunks)

    async def complete_stream(
        self, prompt: Prompt, **parameters: Unpack[CompletionParameters]
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Yield the answer in chunks as they come; the last has the usage and no choices.

        Leaving the iteration (`aclose`, or dropping the iterator) cancels the request.
        """
        request = _checked({"prompt": prompt, **parameters}, CompletionRequest)
        async with aclosing(self._stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> Chat:
        """Return the assistant's whole answer. Errors and cancellation as in `complete`.

        `messages` may contain answers: `messages.append(chat.choices[0].message)`.
        """
        async with aclosing(self.chat_stream(messages, **parameters)) as chunks:
            return await collect_chat(chunks)

    async def chat_stream(
        self, messages: Messages, **parameters: Unpack[ChatParameters]
    ) -> AsyncGenerator[ChatChunk, None]:
        """The assistant's answer in chunks; as `complete_stream`."""
        request = _checked({"messages": _turns(messages), **parameters}, ChatRequest)
        async with aclosing(self._stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def estimate(
        self,
        prompt: Prompt | None = None,
        messages: Messages | None = None,
        **parameters: Unpack[ChatParameters],
    ) -> Estimate:
        """What is predicted of a completion of `prompt`, or of a chat, without running it.

        Raises:
            Invalid: a parameter is wrong, or the request could never run.
            Refused: the cluster is not ready.
        """
        turns = None if messages is None else _turns(messages)
        fields = {"prompt": prompt, "messages": turns, **parameters}
        return await self._call(_checked(fields, EstimateRequest))

    async def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        request = Tokenize(prompt=text, add_special_tokens=add_special_tokens)
        return (await self._call(request)).tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        request = api.check({"tokens": tokens}, Detokenize)
        return (await self._call(request)).prompt

    async def models(self) -> list[Model]:
        """The models served."""
        return (await self._call(ListModels())).data

    async def status(self) -> ClusterStatus:
        """Services, shards, requests and where their KV lies."""
        return await self._call(ShowCluster())

    async def cancel(self, request_id: str) -> None:
        """End a request by the id of its answer. Raises Invalid if there is none in work."""
        await self._call(CancelRequest(request_id))

    async def close(self) -> None:
        """Disconnect; requests in work are cancelled."""
        await self._peer.close()

    async def _call(self, request: Request[T]) -> T:
        return await self._peer.call(request, self._timeout_s or ANSWER_S)

    async def _stream(self, request: Stream[T]) -> AsyncGenerator[T, None]:
        """The timeout interrupts waits for chunks, never the consumer's work between chunks."""
        end_s = None
        if self._timeout_s is not None:
            end_s = asyncio.get_running_loop().time() + self._timeout_s
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(end_s):
                    chunks = await stack.enter_async_context(self._peer.stream(request))
                while True:
                    async with asyncio.timeout_at(end_s):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
            except TimeoutError:
                raise Cancelled(f"the answer took longer than {self._timeout_s:g} s") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Client:
    """`AsyncClient` for code without asyncio: its own thread runs the event loop. Thread-safe."""

    def __init__(
        self,
        address: str | Sequence[str] = ADDRESS,
        bus: Bus | None = None,
        *,
        connect_s: float | None = CONNECT_S,
        timeout_s: float | None = None,
    ) -> None:
        """Arguments are those of `AsyncClient`.

        Args:
            address: of the gateway on the bus; `spsctl up` prints it as SDK. Of several gateways
                all: a call goes to one that answers.
            bus: names this client's keys if the cluster has keys: `Bus(keys="alice.key")`. None
                uses the keys that SPS2_KEYS names.
            connect_s: how long a call waits for a gateway that does not answer before it raises
                PeerLost. An unknown host name raises it at once. None waits for ever.
            timeout_s: how long a whole call may last before it raises Cancelled; for a stream,
                from its start to its last chunk. None: no limit for completions and chats, 30 s
                for all other calls.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sps2", daemon=True)
        self._thread.start()

        async def connect() -> AsyncClient:
            return AsyncClient(address, bus, connect_s=connect_s, timeout_s=timeout_s)

        try:
            self._client = self._wait(connect())
        except BaseException:
            self._stop()
            raise

    def complete(self, prompt: Prompt, **parameters: Unpack[CompletionParameters]) -> Completion:
        """The whole answer to a prompt; see `AsyncClient.complete`."""
        return self._wait(self._client.complete(prompt, **parameters))

    def complete_stream(
        self, prompt: Prompt, **parameters: Unpack[CompletionParameters]
    ) -> Iterator[CompletionChunk]:
        """The answer in chunks, as they come; leaving the loop cancels the request."""
        return self._iterate(lambda: self._client.complete_stream(prompt, **parameters))

    def chat(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> Chat:
        """The assistant's whole answer; as `complete`."""
        return self._wait(self._client.chat(messages, **parameters))

    def chat_stream(
        self, messages: Messages, **parameters: Unpack[ChatParameters]
    ) -> Iterator[ChatChunk]:
        """The assistant's answer in chunks; as `complete_stream`."""
        return self._iterate(lambda: self._client.chat_stream(messages, **parameters))

    def estimate(
        self,
        prompt: Prompt | None = None,
        messages: Messages | None = None,
        **parameters: Unpack[ChatParameters],
    ) -> Estimate:
        """What is predicted of a request that is not run; see `AsyncClient.estimate`."""
        return self._wait(self._client.estimate(prompt, messages, **parameters))

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._wait(self._client.tokenize(text, add_special_tokens))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._wait(self._client.detokenize(tokens))

    def models(self) -> list[Model]:
        """The models served."""
        return self._wait(self._client.models())

    def status(self) -> ClusterStatus:
        """Services, shards, requests and where their KV lies."""
        return self._wait(self._client.status())

    def cancel(self, request_id: str) -> None:
        """End a request by the id of its answer. Raises Invalid if there is none in work."""
        self._wait(self._client.cancel(request_id))

    def close(self) -> None:
        """Disconnect and end the thread; requests in work are cancelled."""
        if not self._loop.is_closed():
            self._wait(self._leave())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise PeerLost("gateway", "the client was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt too must cancel the request
            future.cancel()
            raise

    def _iterate(self, start: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """Yield chunks, each fetched on demand, so that the cluster is never far ahead."""
        chunks = start()

        async def following() -> T | None:
            return await anext(chunks, None)

        try:
            while (chunk := self._wait(following())) is not None:
                yield chunk
        finally:
            self._drop(chunks)

    def _drop(self, chunks: AsyncGenerator[Any, None]) -> None:
        """End a stream without waiting for it: this may be the garbage collector's thread."""

        async def end() -> None:
            await chunks.aclose()

        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(end(), self._loop)

    async def _leave(self) -> None:
        await self._client.close()
        mine = asyncio.current_task()
        await asyncio.gather(*asyncio.all_tasks() - {mine}, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _checked(fields: dict[str, object], kind: type[T]) -> T:
    """A request with these fields. Raises Invalid, also for arguments of the client itself."""
    for name in fields:
        if meant := _OF_THE_CLIENT.get(name):
            raise Invalid(
                f"`{name}` is no parameter of a request: give `{meant}` when you make the client, "
                f"as in Client({meant}=30)",
                name,
                "unknown_field",
            )
    return api.check(fields, kind)


def _turns(messages: Messages) -> Sequence[Turn | api.Message]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [_turn(each) if isinstance(each, api.Answer) else each for each in messages]


def _turn(answer: api.Answer) -> api.Message:
    return api.Message(
        answer.role,
        answer.content,
        tool_calls=answer.tool_calls or None,
        reasoning_content=answer.reasoning_content or None,
    )
