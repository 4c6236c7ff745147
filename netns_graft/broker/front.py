"""The control API: HTTP over a Unix socket, for whoever wants more than a line.

A process of its own, because its libraries are heavy and its clients slow: the zygote neither waits for nor imports
any of it. It holds no state. Each answer is asked of the forwarders anew, so workloads without a broker (``exec``'s,
or those of a broker that died) are here too.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from netns_graft import __version__
from netns_graft.broker import workloads
from netns_graft.linux import control_sockets, places, syscalls

if TYPE_CHECKING:
    from aiohttp import web

_NAME = r"{name:[A-Za-z0-9_.-]+}"


def front(api_sock: socket.socket, runtime: str, using_sock: socket.socket) -> None:
    """Serve until the broker ends us. A byte goes to ``using_sock`` with each request: the broker is not idle."""
    from aiohttp import web

    syscalls.set_process_name("graft-api")

    def used() -> None:
        try:
            using_sock.send(b"u")
        except OSError:
            pass  # so many are waiting that it knows

    web.run_app(
        make_app(places.workloads_dir(runtime), used),
        sock=api_sock,
        print=None,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,  # a follower that has left must not keep its forwarder's attention
        loop=asyncio.new_event_loop(),
    )


def make_app(directory: str, used: Callable[[], None] = lambda: None) -> web.Application:
    """``directory`` is where the forwarders' sockets are."""
    from aiohttp import web
    from pydantic import BaseModel, ValidationError

    from netns_graft.broker import models
    from netns_graft.broker.openapi import openapi

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

    def reply(body: BaseModel, status: int = 200) -> web.Response:
        return web.json_response(body.model_dump(), status=status)

    def problem(status: int, text: str) -> web.Response:
        return reply(models.Problem(error=text), status)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        assert request.transport is not None
        reason = control_sockets.refusal(_underlying(request.transport))
        if reason is not None:
            return problem(403, f"refused: {reason}")
        used()
        try:
            return await handler(request)
        except web.HTTPException as error:
            return problem(error.status, error.reason)
        except ValidationError as error:
            return problem(400, "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()))
        except _Gone as gone:
            return problem(404, str(gone))

    async def list_workloads(_request: web.Request) -> web.Response:
        found = []
        for status in await asyncio.to_thread(lambda: list(workloads.statuses(directory))):
            try:
                found.append(models.Workload.model_validate(status))
            except ValidationError:
                continue  # of another version; whoever asks finds it by its own socket
        return reply(models.Workloads(workloads=found))

    async def one_workload(request: web.Request) -> web.Response:
        return reply(models.Workload.model_validate(await _ask(directory, request, {"do": "status"})))

    async def finish(request: web.Request) -> web.Response:
        answer = await _ask(directory, request, {"do": "finish"}, wait=True)
        if "error" in answer:
            return problem(409, "this workload ends with its command")
        return reply(models.Finished(name=request.match_info["name"]))

    async def flows(request: web.Request) -> web.StreamResponse:
        query = models.FlowsQuery.model_validate(dict(request.query))
        return await _stream_flows(directory, request, follow=query.follow)

    async def version(_request: web.Request) -> web.Response:
        return reply(models.Version(version=__version__))

    async def description(_request: web.Request) -> web.Response:
        return web.json_response(openapi())

    app = web.Application(middlewares=[guarded])
    app.add_routes(
        [
            web.get("/v1/workloads", list_workloads),
            web.get(f"/v1/workloads/{_NAME}", one_workload),
            web.get(f"/v1/workloads/{_NAME}/flows", flows),
            web.post(f"/v1/workloads/{_NAME}/finish", finish),
            web.get("/v1/version", version),
            web.get("/v1/openapi.json", description),
        ]
    )
    return app


class _Gone(Exception):
    """No such workload, or none any more."""


async def _ask(directory: str, request: web.Request, question: dict[str, Any], *, wait: bool = False) -> dict[str, Any]:
    name = request.match_info["name"]
    ask = workloads.ask_and_wait if wait else workloads.ask
    try:
        return await asyncio.to_thread(ask, directory, name, question)
    except OSError:
        raise _Gone(f"no grafted workload {name!r}") from None


async def _stream_flows(directory: str, request: web.Request, *, follow: bool) -> web.StreamResponse:
    """One flow record a line, as the forwarder tells them."""
    from aiohttp import web

    name = request.match_info["name"]
    try:
        sock = await asyncio.to_thread(control_sockets.connect, f"{directory}/{name}.sock", 5.0)
    except OSError:
        raise _Gone(f"no grafted workload {name!r}") from None
    sock.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    try:
        writer.write(json.dumps({"do": "flows", "follow": follow}).encode() + b"\n")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            while part := await reader.read(1 << 16):
                await response.write(part)
        except ConnectionError:
            pass  # either side has left
        return response
    finally:
        writer.close()


def _underlying(transport: asyncio.BaseTransport) -> socket.socket:
    sock: Any = transport.get_extra_info("socket")
    # asyncio's wrapper lends most of a socket's methods, getsockopt and fileno among them.
    return sock  # type: ignore[no-any-return]
