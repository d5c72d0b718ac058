"""Errors in the form of OpenAI's API: an error object, an HTTP status, perhaps a `Retry-After`."""

import math

from starlette.exceptions import HTTPException

from sps2.common.api import ErrorBody, Problem
from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused, Unsound


class TooLarge(Exception):
    """The body of an HTTP request is over the limit."""


class Unsupported(Exception):
    """The body of an HTTP request has a content encoding that is not supported."""


class WrongType(Exception):
    """The body of an HTTP request has a content type that is not accepted."""


class Misdirected(Exception):
    """An HTTP request for another host name."""


class Foreign(Exception):
    """An HTTP request that a page of another site made a browser send."""


class NotReady(Exception):
    """The cluster cannot serve requests now."""


class Unauthorised(Exception):
    """An HTTP request without a valid API key.

    Args:
        message: what is wrong, and what to do.
        code: one word for programs.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


_CLIENT = "invalid_request_error"
_STATUS_BY_CODE = {
    "model_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "response_not_found": 404,
    "answer_not_kept": 404,
    "idempotency_key_reused": 422,
}
_HTTP = {404: "not_found", 405: "method_not_allowed"}


class ErrorReport:
    """The HTTP answer to an error.

    Attributes:
        status: the HTTP status.
        headers: headers to add.
        message: the error in words.
        code: the error in one word, for programs.
        body: OpenAI's error object.
    """

    def __init__(self, error: Exception) -> None:
        self.status, problem = _problem(error)
        self.message = problem.message
        self.code = problem.code or ""
        self.body = ErrorBody(problem)
        self.headers: dict[str, str] = {}
        if isinstance(error, HTTPException) and error.headers:
            self.headers |= dict(error.headers)
        if isinstance(error, Refused):
            self.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        elif self.status == 503:
            self.headers["retry-after"] = "1"
        elif self.status == 401:
            self.headers["www-authenticate"] = "Bearer"
        elif isinstance(error, Unsupported):
            self.headers["accept-encoding"] = "identity"


def _problem(error: Exception) -> tuple[int, Problem]:
    match error:
        case Invalid(message=message, field=field, code=code):
            status = _STATUS_BY_CODE.get(code or "", 400)
            return status, Problem(message, _CLIENT, field, code)
        case TooLarge():
            return 413, Problem(str(error), _CLIENT, None, "request_too_large")
        case Unsupported():
            return 415, Problem(str(error), _CLIENT, None, "unsupported_encoding")
        case WrongType():
            return 415, Problem(str(error), _CLIENT, None, "unsupported_media_type")
        case Misdirected():
            return 421, Problem(str(error), _CLIENT, None, "misdirected_request")
        case Foreign():
            return 403, Problem(str(error), _CLIENT, None, "foreign_origin")
        case Unauthorised(code=code):
            return 401, Problem(str(error), _CLIENT, None, code)
        case Refused():
            return 429, Problem(str(error), "rate_limit_error", None, "rate_limit_exceeded")
        case NotReady():
            return 503, Problem(str(error), "service_unavailable", None, "not_ready")
        case PeerLost():
            return 503, Problem(str(error), "service_unavailable", None, "peer_lost")
        case Cancelled():
            return 499, Problem(str(error), "cancelled", None, "cancelled")
        case Unsound():
            return 500, Problem(str(error), "server_error", None, "model_unsound")
        case HTTPException(status_code=status, detail=detail):
            return status, Problem(str(detail), _CLIENT, None, _HTTP.get(status))
    return 500, Problem("an internal error; it was logged", "server_error", None, "internal_error")
