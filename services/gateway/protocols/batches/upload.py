"""Reads the form with which a file is uploaded."""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from sps2.common.api import check
from sps2.common.api.parsing import MISSING, UNSUPPORTED
from sps2.common.errors import Cancelled, Invalid
from sps2.services.gateway.http.problems import WrongType
from sps2.services.gateway.protocols.batches.shapes import File, Lifetime
from sps2.services.gateway.protocols.batches.store import Store, Writer

READ = 1 << 20
MOST_FIELDS = 8
FORM_BYTES = 64 << 10
"""What a form may have besides its file."""
SECONDS, ANCHOR = "expires_after[seconds]", "expires_after[anchor]"


async def uploaded(request: Request, store: Store, owner: str) -> File:
    """Keep the file of a form.

    Raises:
        WrongType: the body is no form.
        TooLarge: the file is over the limit; no more than that is read.
        Refused: there is no room for it.
        Invalid: a field of the form is wrong, missing or unknown.
        Cancelled: the client left before its file was complete.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise WrongType("a file is uploaded as multipart/form-data, with `file` and `purpose`")
    writer = store.writer(owner)
    kept = False
    try:
        length = request.headers.get("content-length", "")
        if length.isdigit():
            store.claim(writer, int(length) - FORM_BYTES)
        parser = MultiPartParser(
            request.headers, _bounded(request, store, writer), max_files=1, max_fields=MOST_FIELDS
        )
        try:
            form = await parser.parse()
            file, lifetime = _checked(dict(form.multi_items()))
            while data := await file.read(READ):
                writer.write(data)
        finally:
            # a form has no file whose part does not end, and none if the client leaves
            for opened in getattr(parser, "_files_to_close_on_error", ()):
                opened.close()
        name = (file.filename or "file").replace("\\", "/").rpartition("/")[2][:255]
        made = writer.keep(name, "batch", lifetime.seconds if lifetime else None)
        kept = True
        return made
    except MultiPartException as error:
        raise Invalid(f"the form is malformed: {error.message}", None, "invalid_form") from error
    except ClientDisconnect:
        raise Cancelled("the client left before its file was complete") from None
    finally:
        if not kept:
            writer.drop()


def _checked(fields: dict[str, Any]) -> tuple[UploadFile, Lifetime | None]:
    file, purpose = fields.pop("file", None), fields.pop("purpose", None)
    if not isinstance(file, UploadFile):
        raise Invalid("`file` is required, as the file of a form", "file", MISSING)
    if purpose is None:
        raise Invalid("`purpose` is required: `batch`", "purpose", MISSING)
    if purpose != "batch":
        raise Invalid("`purpose` must be `batch` here", "purpose", UNSUPPORTED)
    seconds, anchor = fields.pop(SECONDS, None), fields.pop(ANCHOR, "created_at")
    for name in fields:
        raise Invalid(f"unknown field `{name[:80]}`", name, "unknown_field")
    if seconds is None:
        return file, None
    given = int(seconds) if str(seconds).isdecimal() and len(seconds) < 12 else seconds
    return file, check({"anchor": anchor, "seconds": given}, Lifetime)


async def _bounded(request: Request, store: Store, writer: Writer) -> AsyncGenerator[bytes, None]:
    """The body's bytes; room is taken for them as they come. Raises as `Store.claim` does."""
    size = 0
    async for part in request.stream():
        size += len(part)
        store.claim(writer, size - FORM_BYTES)
        yield part
