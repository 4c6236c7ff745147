"""The API's description, made of the very models that check its bodies. ``docs/openapi.json`` is a copy; a test holds
it and the routes against this.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from netns_graft import __version__
from netns_graft.broker import models

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "as ps shows it",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$"},
}
_FOLLOW = {
    "name": "follow",
    "in": "query",
    "description": "go on with each flow as it ends, until the workload does",
    "schema": {"type": "boolean", "default": False},
}


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies: list[type[BaseModel]] = [
        models.Workloads,
        models.Workload,
        models.Finished,
        models.Version,
        models.Problem,
    ]
    _, schemas = models_json_schema(
        [(body, "serialization") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    flows = {
        "description": "one flow record a line; {\"lost\": N} when the reader was too slow for N of them",
        "content": {"application/x-ndjson": {"schema": {"type": "object"}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "netns-graft broker",
            "version": __version__,
            "description": "HTTP over the Unix socket RUNTIME/broker-N/api.sock. Only the user's own processes in the "
            "host's network may ask; those in a graft get 403.",
        },
        "paths": {
            "/v1/workloads": {"get": _operation("Every grafted workload, oldest first", models.Workloads)},
            "/v1/workloads/{name}": {
                "get": _operation("One workload", models.Workload, [_NAME], {"404": "there is none of this name"})
            },
            "/v1/workloads/{name}/flows": {
                "get": {
                    "summary": "Its last flows, and those to come",
                    "parameters": [_NAME, _FOLLOW],
                    "responses": {
                        "200": flows,
                        **_problems({"400": "a wrong parameter", "404": "there is none of this name"}),
                    },
                }
            },
            "/v1/workloads/{name}/finish": {
                "post": _operation(
                    "Take its network away; answered when its flows are recorded",
                    models.Finished,
                    [_NAME],
                    {"404": "there is none of this name", "409": "it is an exec, which ends with its command"},
                )
            },
            "/v1/version": {"get": _operation("Who answers", models.Version)},
            "/v1/openapi.json": {
                "get": {
                    "summary": "This description",
                    "responses": {
                        "200": {
                            "description": "OpenAPI",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        },
                        **_problems({}),
                    },
                }
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(
    summary: str,
    body: type[BaseModel],
    parameters: list[dict[str, Any]] | None = None,
    problems: dict[str, str] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary}
    if parameters:
        operation["parameters"] = parameters
    operation["responses"] = {"200": _response((body.__doc__ or summary).strip().splitlines()[0], body)}
    operation["responses"] |= _problems(problems or {})
    return operation


def _problems(more: dict[str, str]) -> dict[str, Any]:
    texts = {"403": "the asker may not: another user, or a process in a graft", **more}
    return {status: _response(text, models.Problem) for status, text in sorted(texts.items())}


def _response(text: str, body: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


if __name__ == "__main__":
    import json

    print(json.dumps(openapi(), indent=1))
