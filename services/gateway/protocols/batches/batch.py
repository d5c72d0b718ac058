"""One batch: its state, and the lines that it reads and writes."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import msgspec

from sps2.common.api import parse
from sps2.common.errors import Invalid
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.names import LONG
from sps2.services.gateway.protocols.batches.shapes import (
    DAY_S,
    Batch,
    BatchRequest,
    Counts,
    Line,
    Problem,
    Problems,
    Reason,
    Response,
    Result,
    Status,
)
from sps2.services.gateway.protocols.batches.store import Store, Writer

BAD = "invalid_value"
MOST_LINES = 50_000
MOST_PROBLEMS = 100
"""Of one batch, as many are reported."""


class Job:
    """A batch in work or ended.

    Args:
        owner: name of the API key, or empty.
        store: where its answers are written.

    Attributes:
        stop: done when the batch is to be cancelled.
        ended: set when nothing more will be done.
        in_work: the lines whose requests are, by their `custom_id`.
        total: how many lines there are.
        shown: the batch as clients see it.
    """

    def __init__(
        self, request: BatchRequest, owner: str, account: Account | None, store: Store
    ) -> None:
        now_s = int(store.now())
        self.owner = owner
        self.account = account
        self.request = request
        self.stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.in_work: dict[str, Line] = {}
        self.total = 0
        self._counts = {"completed": 0, "failed": 0}
        self._store = store
        self._writers: dict[str, Writer] = {}
        self.shown = Batch(
            id=f"batch_{store.names(LONG)}",
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            status="validating",
            created_at=now_s,
            expires_at=now_s + DAY_S,
            metadata=request.metadata,
        )

    @property
    def left_s(self) -> float:
        """Seconds until it expires."""
        return max(0.0, self.shown.expires_at - self._store.now())

    def becomes(self, status: Status, **more: Any) -> None:
        """Change the status; there is a time for each but the first."""
        at = {f"{status}_at": int(self._store.now())}
        self.shown = msgspec.structs.replace(self.shown, status=status, **at, **more)

    def count(self) -> None:
        """Show how many requests are done."""
        counts = Counts(self.total, **self._counts)
        self.shown = msgspec.structs.replace(self.shown, request_counts=counts)

    def answer(self, line: Line, status: int, name: str, body: object) -> None:
        """Write the answer to a line's request. Raises as `Store.claim` does."""
        kind = "completed" if status == 200 else "failed"
        self._write(kind, line, Response(status, name, body), None)

    def leave(self, line: Line, reason: Reason) -> None:
        """Write why a line's request has no answer."""
        self._write("failed", line, None, reason)

    def close(self) -> None:
        """Keep the files that were written."""
        lifetime = self.request.output_expires_after
        made = {}
        for kind, field, name in (
            ("completed", "output_file_id", "output"),
            ("failed", "error_file_id", "error"),
        ):
            if kind in self._writers:
                filename = f"{self.shown.id}_{name}.jsonl"
                seconds = lifetime.seconds if lifetime else None
                made[field] = self._writers[kind].keep(filename, "batch_output", seconds).id
                del self._writers[kind]
        self.shown = msgspec.structs.replace(self.shown, **made)

    def drop(self) -> None:
        """Give up the files that are not kept."""
        for writer in self._writers.values():
            writer.drop()
        self._writers.clear()

    def _write(
        self, kind: str, line: Line, response: Response | None, reason: Reason | None
    ) -> None:
        if kind not in self._writers:
            self._writers[kind] = self._store.writer(self.owner)
        result = Result(f"batch_req_{secrets.token_hex(12)}", line.custom_id, response, reason)
        self._writers[kind].write(msgspec.json.encode(result) + b"\n")
        self._counts[kind] += 1
        self.count()


def problems_of(
    file: BinaryIO, endpoint: str, most_bytes: int, stopped: Callable[[], bool]
) -> tuple[int, list[Problem]]:
    """How many requests a file has, and what is wrong with it, at most `MOST_PROBLEMS`.

    Args:
        most_bytes: of one line.
        stopped: whether to give up.
    """
    names: set[str] = set()
    problems: list[Problem] = []
    number = 0
    while (raw := file.readline(most_bytes + 1)) and not stopped():
        number += 1
        try:
            if len(raw) > most_bytes:
                raise Invalid(
                    f"the line is over the limit of {most_bytes} bytes", None, "request_too_large"
                )
            if not raw.strip():
                continue
            _check(parse(raw, Line), names, endpoint)
        except Invalid as error:
            code = error.code or "invalid_request"
            found = Problem(code=code, message=str(error), param=error.field, line=number)
            problems.append(found)
            if len(problems) == MOST_PROBLEMS or len(raw) > most_bytes:
                break
    file.seek(0)
    if not names and not problems:
        problems.append(Problem(code="empty_file", message="the file has no requests"))
    return len(names), problems


def next_line(file: BinaryIO) -> Line | None:
    """The next request of a file without problems; None at its end."""
    for raw in file:
        if raw.strip():
            return parse(raw, Line)
    return None


def failed_with(problems: list[Problem]) -> Mapping[str, Problems]:
    """The field of a batch that failed."""
    return {"errors": Problems(problems)}


def _check(line: Line, names: set[str], endpoint: str) -> None:
    if line.url != endpoint:
        raise Invalid(f"`url` must be the batch's endpoint, {endpoint}", "url", BAD)
    if line.custom_id in names:
        raise Invalid(
            f"`custom_id` {line.custom_id[:80]!r} is on an earlier line too",
            "custom_id",
            BAD,
        )
    names.add(line.custom_id)
    if len(names) > MOST_LINES:
        raise Invalid(f"a batch may have {MOST_LINES} requests at most", None, BAD)
