"""The few errors that cross a wire; each means an action for whoever receives it."""


class ServiceError(Exception):
    """Base of the errors that travel between services."""


class Invalid(ServiceError):
    """The caller's fault; the same request will fail again.

    Args:
        message: what is wrong and what to do.
        field: the request's field at fault, if one is.
        code: a word for programs, where the API has one, such as "context_length_exceeded".
    """

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message, field, code)
        self.message = message
        self.field = field
        self.code = code

    def __str__(self) -> str:
        return self.message


class Refused(ServiceError):
    """Not now: no room, a full queue, or not ready. Retry after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class PeerLost(ServiceError):
    """A service or a data-plane peer is gone; what depended on it must be planned anew."""

    def __init__(self, peer: str, message: str = "") -> None:
        super().__init__(peer, message)
        self.peer = peer
        self.message = message or f"{peer} was lost"

    def __str__(self) -> str:
        return self.message


class Cancelled(ServiceError):
    """The request was cancelled by its caller, or its deadline passed."""


class Internal(ServiceError):
    """A fault in a service; it was logged there."""


class Unsound(Internal):
    """The model's own numbers are at fault; whoever asks is told so."""
