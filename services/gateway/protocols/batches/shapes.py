"""Requests and answers about files and batches, as in OpenAI's API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sps2.common.messages import Struct

DAY_S = 24 * 3600
HOUR_S = 3600

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
Purpose = Literal["batch", "batch_output"]


class File(Struct, frozen=True, kw_only=True):
    """A file that the gateway keeps; times are in seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class Files(Struct, frozen=True):
    data: list[File]
    object: Literal["list"] = "list"
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Deleted(Struct, frozen=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Lifetime(Struct, frozen=True):
    """How long a file is kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=HOUR_S, le=30 * DAY_S)]


Text = Annotated[str, Meta(max_length=512)]


class BatchRequest(Struct, frozen=True, kw_only=True):
    """`POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, Text], Meta(max_length=16)] | None = None
    output_expires_after: Lifetime | None = None


class Line(Struct, frozen=True, kw_only=True):
    """A line of an input file: one request."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class Response(Struct, frozen=True):
    """The answer to a line's request."""

    status_code: int
    request_id: str
    body: Any


class Problem(Struct, frozen=True, kw_only=True):
    """Why a batch failed, or a line was not answered."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Of the input file, from 1 on."""


class Reason(Struct, frozen=True):
    code: str
    message: str


class Result(Struct, frozen=True):
    """A line of an output or error file."""

    id: str
    custom_id: str
    response: Response | None
    error: Reason | None


class Problems(Struct, frozen=True):
    data: list[Problem]
    object: Literal["list"] = "list"


class Counts(Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(Struct, frozen=True, kw_only=True):
    """A batch; times are in seconds since the epoch, null for what did not happen."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: Problems | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class BatchList(Struct, frozen=True):
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"
