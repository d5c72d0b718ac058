"""Errors and events in the form of the Messages API."""

import msgspec

from sps2.services.gateway.http.framing import Framing, event
from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.protocols.anthropic.answers import ErrorBody, Ping, Problem

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(report: ErrorReport, request_id: str) -> ErrorBody:
    """The error object for a report."""
    default = "invalid_request_error" if report.status < 500 else "api_error"
    return ErrorBody(Problem(_TYPES.get(report.status, default), report.message), request_id)


class MessageFraming(Framing):
    """Events with their types as names; pings in pauses; nothing after the last event.

    Args:
        request_id: for errors.
    """

    still_here = event(Ping(), "ping")
    done = b""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def written(self, value: object) -> bytes:
        kind = type(value)
        assert issubclass(kind, msgspec.Struct)
        return event(value, str(kind.__struct_config__.tag))

    def failed(self, report: ErrorReport) -> bytes:
        return event(error_body(report, self._request_id), "error")
