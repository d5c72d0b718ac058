"""How the objects of a stream become bytes: OpenAI's server-sent events, unless told otherwise."""

import msgspec

from sps2.services.gateway.http.problems import ErrorReport

_SEPARATORS = {letter.encode(): b"\\u%04x" % ord(letter) for letter in ("\x85", "\u2028", "\u2029")}


class Framing:
    """The form of one stream; another protocol overrides what differs.

    Attributes:
        media_type: the content type of the answer.
        done: ends the stream, also after an error.
    """

    media_type = "text/event-stream"
    done = b"data: [DONE]\n\n"

    @property
    def still_here(self) -> bytes:
        """What is sent in a pause; empty sends nothing.

        It is an event without data. A comment says more, but clients that strip what they receive
        take the events after it for parts of the comment.
        """
        return b"\n\n"

    def written(self, value: object) -> bytes:
        """One object."""
        return event(value)

    def failed(self, report: ErrorReport) -> bytes:
        """An error after the stream began."""
        return event(report.body)


def event(value: object, name: str = "") -> bytes:
    """A server-sent event with `value` as JSON, of type `name` if one is given."""
    data = msgspec.json.encode(value)
    # JSON does not escape these, and some clients end a line at them
    for separator, escaped in _SEPARATORS.items():
        data = data.replace(separator, escaped)
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"
