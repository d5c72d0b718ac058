"""Messages by which shards stop working: to be idle, to end, or to be gone for good."""

from sps2.common.messages.base import Done, Request, Stream, Struct


class Unfinished(Struct, frozen=True):
    """The requests that a shard still works for."""

    requests: tuple[str, ...]


class Drain(Stream[Unfinished], frozen=True):
    """Anyone to gateway or scheduler: give a shard no new work. Items: what it still has, at once
    and at every change, at last nothing. What it has after `finish_s` is handed over to others, if
    the stream is still open. Invalid if there is no such shard, or no other that does the same."""

    shard: str
    finish_s: float


class Retire(Stream[Unfinished], frozen=True):
    """A shard to scheduler, when it is told to end: as `Drain`, but it is never refused."""

    shard: str
    finish_s: float


class Undrain(Request[Done], frozen=True):
    """Anyone to gateway or scheduler: give a shard work again. Invalid if it does not drain."""

    shard: str


class KeepDraining(Request[Done], frozen=True):
    """Scheduler to shard: say whether you drain when you register again."""

    draining: bool


class Forget(Request[Done], frozen=True):
    """The joining service to scheduler: a shard has left for good. It is not lost, but gone."""

    shard: str
