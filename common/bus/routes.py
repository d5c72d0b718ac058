"""The routes of a service: which method answers which message, by the methods' annotations."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sps2.common.messages import Request, Stream


class Route(NamedTuple):
    """The handler of a message: a bound method, the message's type, whether it is a stream."""

    method: Callable[[Any], Any]
    message: type[Request[Any]] | type[Stream[Any]]
    is_stream: bool


def routes(handlers: Sequence[object]) -> dict[str, Route]:
    """The public async methods of `handlers` whose one parameter is a message, by message name.

    Raises:
        TypeError: two methods handle the same message, or a method's form does not fit its
            message: an async generator for a `Stream`, a coroutine for a `Request`.
    """
    table: dict[str, Route] = {}
    for handler in handlers:
        for name, _ in inspect.getmembers(type(handler), inspect.isfunction):
            method = getattr(handler, name)
            is_stream = inspect.isasyncgenfunction(method)
            if name.startswith("_") or not (is_stream or inspect.iscoroutinefunction(method)):
                continue
            parameters = inspect.signature(method).parameters
            if len(parameters) != 1:
                continue
            parameters = inspect.signature(method, eval_str=True).parameters
            message = next(iter(parameters.values())).annotation
            if not (isinstance(message, type) and issubclass(message, Request | Stream)):
                continue
            if is_stream != issubclass(message, Stream):
                raise TypeError(f"{method.__qualname__} has the wrong form for {message.__name__}")
            if message.__name__ in table:
                raise TypeError(f"two handlers for {message.__name__}")
            table[message.__name__] = Route(method, message, is_stream)
    return table
