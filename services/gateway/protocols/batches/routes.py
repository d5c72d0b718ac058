"""The routes of OpenAI's files and batches."""

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response

from sps2.common.errors import Invalid
from sps2.services.gateway.http.authorization import account_of
from sps2.services.gateway.http.door import Door
from sps2.services.gateway.http.sse import Json
from sps2.services.gateway.protocols.batches.anywhere import Anywhere, DropFile, FindBatch
from sps2.services.gateway.protocols.batches.batch import BAD
from sps2.services.gateway.protocols.batches.shapes import BatchList, BatchRequest, Deleted, Files
from sps2.services.gateway.protocols.batches.store import page
from sps2.services.gateway.protocols.batches.upload import uploaded

MOST_FILES, MOST_BATCHES = 10_000, 100
"""Entries of one page."""


def add(app: FastAPI, door: Door, anywhere: Anywhere) -> None:
    """Add the routes below /v1/files and /v1/batches."""
    batches, store = anywhere.here, anywhere.here.store
    for path, answer in door.batched.items():
        batches.add(path, answer)

    @app.post("/v1/files", include_in_schema=False)
    async def upload(request: Request) -> Response:
        return Json(await uploaded(request, store, owner_of(request)))

    @app.get("/v1/files", include_in_schema=False)
    async def list_files(
        request: Request,
        purpose: str | None = None,
        limit: str = str(MOST_FILES),
        after: str | None = None,
        order: str = "desc",
    ) -> Response:
        if order not in ("asc", "desc"):
            raise Invalid("`order` must be `asc` or `desc`", "order", "invalid_value")
        files = {
            each.id: each
            for each in await anywhere.files(owner_of(request))
            if purpose in (None, each.purpose)
        }
        names = [*files] if order == "desc" else [*reversed(files)]
        names, more = page(names, after, _limit(limit, MOST_FILES))
        first, last = (names[0], names[-1]) if names else (None, None)
        return Json(Files([files[name] for name in names], "list", first, last, more))

    @app.get("/v1/files/{name}", include_in_schema=False)
    async def show_file(request: Request, name: str) -> Response:
        return Json((await anywhere.file(name, owner_of(request))).file)

    @app.delete("/v1/files/{name}", include_in_schema=False)
    async def delete_file(request: Request, name: str) -> Response:
        await anywhere.drop_file(DropFile(name, owner_of(request)))
        return Json(Deleted(name))

    @app.get("/v1/files/{name}/content", include_in_schema=False)
    async def read_file(request: Request, name: str) -> Response:
        stored = await anywhere.file(name, owner_of(request))
        return FileResponse(stored.path, media_type="application/octet-stream")

    @app.post("/v1/batches", include_in_schema=False)
    async def create(request: Request) -> Response:
        async with door.bodies.read(request, BatchRequest) as body:
            owner = owner_of(request)
            try:
                stored = await anywhere.file(body.value.input_file_id, owner)
            except Invalid as error:
                raise Invalid(str(error), "input_file_id", BAD) from None
            return Json(batches.create(body.value, stored, owner, account_of(request)))

    @app.get("/v1/batches", include_in_schema=False)
    async def list_batches(
        request: Request, limit: str = "20", after: str | None = None
    ) -> Response:
        found = {each.id: each for each in await anywhere.batches(owner_of(request))}
        names, more = page(found, after, _limit(limit, MOST_BATCHES))
        first, last = (names[0], names[-1]) if names else (None, None)
        return Json(BatchList([found[name] for name in names], first, last, more))

    @app.get("/v1/batches/{name}", include_in_schema=False)
    async def show_batch(request: Request, name: str) -> Response:
        return Json(await anywhere.batch(FindBatch(name, owner_of(request), False)))

    @app.post("/v1/batches/{name}/cancel", include_in_schema=False)
    async def cancel(request: Request, name: str) -> Response:
        return Json(await anywhere.batch(FindBatch(name, owner_of(request), True)))


def owner_of(request: Request) -> str:
    """Whose files a request means: the name of its API key, or empty if none is needed."""
    account = account_of(request)
    return account.name if account else ""


def _limit(given: str, most: int) -> int:
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= most):
        raise Invalid(f"`limit` must be 1 to {most}", "limit", "invalid_value")
    return int(given)
