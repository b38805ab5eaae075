"""What /openapi.json and /docs say beyond what FastAPI finds out itself: bodies that we read ourselves, and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.schemas import ErrorBody

STATUSES = {
    400: "A field is wrong, or asks for what cannot be done; `param` names it.",
    401: "API_KEYS is set, and none of them was sent.",
    404: "The model is not on this machine.",
    408: "Nothing of the body came for a minute.",
    413: "The request, or the audio in it, is over a limit.",
    415: "The body is of a type that is not read here.",
    429: "Too many requests. `Retry-After` says when to come again.",
    500: "The server failed; its log says why.",
    502: "The Hub could not be reached, or did not send the model whole.",
    503: "The model is being downloaded, has failed, or finds no room.",
    507: "The disk is too full for the model.",
}
EVERYWHERE = (400, 401, 429, 500)
# Half a second of silence, so that examples are short and run.
FLAC = (
    "ZkxhQwAAACIQABAAAAANAAANAfQA8AAAD6BYEBJJx2tzW9dM5TArAJMXhAAAKCAAAAByZWZlcmVuY2UgbGliRkxBQyAxLjQuMyAyMDIzMDYyMwAA"
    "AAD/+HQIAA+fggAAAFLj"
)
TEXT = {"schema": {"type": "string"}}
EVENTS = {
    "itemSchema": {  # OpenAPI's word for the items of a stream: server-sent events
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or `[DONE]`"}},
        "required": ["data"],
    }
}
CONTENT = {"text": "text/plain", "vtt": "text/vtt", "events": "text/event-stream"}


def answers(
    *models: type[BaseModel],
    refused: tuple[int, ...] = (),
    headers: Mapping[str, str] | None = None,
    **others: dict[str, Any],
) -> dict[int, Any]:
    """`responses` of a route: JSON of any of `models`, `others` by the name of their content, what its `headers` mean,
    and refusals."""
    good: dict[str, Any] = {"description": "Done."}
    if headers:
        good["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in headers.items()
        }
    if models:
        good["model"] = Union[models]  # noqa: UP007 - of as many as there are
    if others:
        good["content"] = {CONTENT[name]: content for name, content in others.items()}
    return {200: good, **refusals(*EVERYWHERE, *refused)}


def refusals(*statuses: int) -> dict[int, Any]:
    return {status: {"model": ErrorBody, "description": STATUSES[status]} for status in statuses}


def json_body(model: type[BaseModel], required: bool = True, **examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` itself. `install` must be told of the model."""
    content = {
        "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def install(app: FastAPI, bodies: tuple[type[BaseModel], ...], with_keys: bool) -> None:
    """Complete the document, which is made when somebody asks for it first."""
    generate = app.openapi

    def completed() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate(), bodies, with_keys)
        return generate()

    app.openapi = completed  # type: ignore[method-assign] # FastAPI's own way to extend it


def _complete(document: dict[str, Any], bodies: tuple[type[BaseModel], ...], with_keys: bool) -> None:
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    components = document["components"]
    components["schemas"] |= definitions["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        operation["responses"].pop("422", None)  # FastAPI's own refusal, which becomes a 400 here
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
