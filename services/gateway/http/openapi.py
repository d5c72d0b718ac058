"""Describes the message types in the OpenAPI document, so that `/docs` shows every parameter."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sps2.common import api

_TYPES = (
    api.CompletionRequest,
    api.Completion,
    api.ChatRequest,
    api.Chat,
    api.EstimateRequest,
    api.Estimate,
    api.EmbeddingRequest,
    api.Embeddings,
    api.Tokenize,
    api.Tokens,
    api.Detokenize,
    api.Text,
    api.Models,
    api.Model,
    api.Version,
    api.Ready,
)
_REF = "#/components/schemas/"


class Family(NamedTuple):
    """The types of one protocol in the document.

    Attributes:
        prefix: of their names there.
        types: the bodies of its requests and answers.
        error: the body of its errors.
    """

    prefix: str
    types: tuple[type, ...]
    error: type


OPENAI = Family("", _TYPES, api.ErrorBody)


_ERRORS = {
    400: "a field is wrong, unknown or not supported; `param` names it",
    401: "the API key is missing, unknown, revoked or expired",
    404: "the model does not exist",
    413: "the body is over the limit",
    429: "too many requests at once, or over the API key's quota; `Retry-After` says when to retry",
    503: "the cluster is not ready, or lost a service or shard",
}
_BEARER = "apiKey"


def takes(
    request: type, answer: type, about: str, example: dict[str, Any], family: Family = OPENAI
) -> dict[str, Any]:
    """Arguments of a route whose JSON body is a `request` and whose answer is an `answer`."""
    body = _json(request, family)
    body["application/json"]["example"] = example
    return gives(answer, about, 400, 404, 413, 429, 503, family=family) | {
        "openapi_extra": {"requestBody": {"required": True, "content": body}}
    }


def gives(answer: type, about: str, *errors: int, family: Family = OPENAI) -> dict[str, Any]:
    """Arguments of a route whose answer is an `answer`.

    Args:
        about: what the route does, in a few words.
        errors: statuses of the errors that it may answer.
        family: the protocol whose types these are.
    """
    good = {"description": answer.__doc__ or answer.__name__, "content": _json(answer, family)}
    bad = {status: _error(status, family) for status in errors}
    return {"summary": about, "responses": {200: good} | bad}


def document(
    app: FastAPI, open_paths: Collection[str] | None, families: Sequence[Family] = ()
) -> dict[str, Any]:
    """The OpenAPI document of an application, created once.

    Args:
        open_paths: the paths that need no API key; None if no path needs one.
        families: the types of protocols other than OpenAI's.
    """
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = made.setdefault("components", {})
        for family in (OPENAI, *families):
            template = f"{_REF}{family.prefix}{{name}}"
            _, schemas = msgspec.json.schema_components(
                (*family.types, family.error), ref_template=template
            )
            named = {f"{family.prefix}{name}": schema for name, schema in schemas.items()}
            parts.setdefault("schemas", {}).update(named)
        # FastAPI's own: errors of parameters have the same form as all others here
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        if open_paths is not None:
            parts["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
        for path, operations in made["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if open_paths is not None and path not in open_paths:
                    operation["security"] = [{_BEARER: []}]
                    operation["responses"]["401"] = _error(401, OPENAI)
        app.openapi_schema = made
    return app.openapi_schema


def _error(status: int, family: Family) -> dict[str, Any]:
    return {"description": _ERRORS[status], "content": _json(family.error, family)}


def _json(kind: type, family: Family) -> dict[str, Any]:
    schema = {"$ref": f"{_REF}{family.prefix}{kind.__name__}"}
    return {"application/json": {"schema": schema}}
