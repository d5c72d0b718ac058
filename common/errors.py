"""The errors that travel between services; each calls for a different reaction."""


class ServiceError(Exception):
    """Base of the errors that travel between services."""


class Invalid(ServiceError):
    """The request is wrong; the same request would fail again.

    Args:
        message: what is wrong and what to do.
        field: the request's field at fault, if one is.
        code: the API's error code, if it has one, for example "context_length_exceeded".
    """

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message, field, code)
        self.message = message
        self.field = field
        self.code = code

    def __str__(self) -> str:
        return self.message


class Refused(ServiceError):
    """Not possible now: no room, a full queue, or not ready. Retry after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class PeerLost(ServiceError):
    """A service or a data-plane peer is gone; work that depended on it must be planned again."""

    def __init__(self, peer: str, message: str = "") -> None:
        super().__init__(peer, message)
        self.peer = peer
        self.message = message or f"{peer} was lost"

    def __str__(self) -> str:
        return self.message


class Preempted(ServiceError):
    """A request gave its KV up in the middle of its answer, to others or because a shard is to end:
    submit the rest again.

    It had room for `answer_tokens` tokens of answer.
    """

    def __init__(self, message: str, answer_tokens: int = 0) -> None:
        super().__init__(message, answer_tokens)
        self.message = message
        self.answer_tokens = answer_tokens

    def __str__(self) -> str:
        return self.message


class Cancelled(ServiceError):
    """The request was cancelled by its caller, or its deadline passed."""


class Internal(ServiceError):
    """A fault in a service, which logged it."""


class Unsound(Internal):
    """The model itself produces unusable numbers; the caller receives the reason."""
