"""Describes the message types in the OpenAPI document, so that `/docs` shows every parameter."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sps2.common import api

_TYPES = (
    api.CompletionRequest,
    api.Completion,
    api.ChatRequest,
    api.Chat,
    api.Tokenize,
    api.Tokens,
    api.Detokenize,
    api.Text,
    api.ErrorBody,
)
_REF = "#/components/schemas/{name}"


def takes(request: type, answer: type) -> dict[str, Any]:
    """Arguments of a route whose JSON body is a `request` and whose answer is an `answer`."""
    error = {"description": "An error, as OpenAI tells it", "content": _json(api.ErrorBody)}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": _json(request)}},
        "responses": {
            200: {"description": answer.__doc__ or answer.__name__, "content": _json(answer)},
            "4XX": error,
            "5XX": error,
        },
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
        app.openapi_schema.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return app.openapi_schema


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
