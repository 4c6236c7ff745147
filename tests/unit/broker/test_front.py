"""The control API over its socket: real forwarder sockets behind it, http.client before it."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ground.elsewhere import connect_from_elsewhere

from netns_graft.broker.front import make_app
from netns_graft.broker.openapi import openapi
from netns_graft.flow import Flow
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.status import Message, Recent, StatusSocket
from netns_graft.linux import control_sockets

TREE = Path(__file__).parents[3]
STATUS = {
    "name": "web", "kind": "container", "container_id": "0" * 64, "container_name": "web", "mode": "route",
    "policy": "deny; allow example.com:443", "upstream": "direct", "dns": "synthetic", "hold": True, "started": 1.5,
    "pid": 1, "workload_pid": 2, "network_namespace": 3,
    "flows": {"open": 1, "total": 2, "denied": 1, "unattributed": 0, "questions": 4},
    "bytes": {"sent": 5, "received": 6},
}  # fmt: skip


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("graft", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = control_sockets.connect(self._path, 10)


class Api:
    """One forwarder called "web" that finishes, and one called "exec-1" that does not; the API before them."""

    def __init__(self, place: Path) -> None:
        self.path = str(place / "api.sock")
        self.directory = place / "workloads"
        self.directory.mkdir(mode=0o700)
        self.recent = Recent()
        self.used = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        self._ready.wait(10)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()

        async def status(_question: Message) -> Message:
            return dict(STATUS)

        async def exec_status(_question: Message) -> Message:
            return STATUS | {"name": "exec-1", "kind": "exec", "container_id": None, "container_name": None}

        async with asyncio.TaskGroup() as group:
            jobs = Jobs(group)
            served = StatusSocket.open(str(self.directory / "web.sock"))

            async def finish(_question: Message) -> Message:
                self._loop.call_soon(served.close)
                return {"finished": True}

            other = StatusSocket.open(str(self.directory / "exec-1.sock"))
            served.serve(jobs, self.recent, {"status": status, "finish": finish})
            other.serve(jobs, Recent(), {"status": exec_status})
            runner = web.AppRunner(make_app(str(self.directory), self._use), handler_cancellation=True)
            await runner.setup()
            api_sock = control_sockets.listen(self.path)
            await web.SockSite(runner, api_sock).start()
            self._ready.set()
            await self._over.wait()
            await runner.cleanup()
            jobs.stop()
            for socket_of in (served, other):
                socket_of.close()

    def _use(self) -> None:
        self.used += 1

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        connection = UnixConnection(self.path)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def add(self, flow: Flow) -> None:
        self._loop.call_soon_threadsafe(self.recent.add, flow)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    served = Api(tmp_path)
    yield served
    served.close()


def flow(number: int) -> Flow:
    return Flow(str(number), "web", "tcp", "198.18.0.1", 1, "93.184.216.34", 80, 0.0)


def test_workloads_all_and_one(api: Api) -> None:
    status, body = api.ask("GET", "/v1/workloads")
    assert status == 200
    assert sorted(one["name"] for one in body["workloads"]) == ["exec-1", "web"]
    assert api.ask("GET", "/v1/workloads/web") == (200, STATUS | {"members": []})
    assert api.used == 2, "each request keeps the broker from being idle"


def test_what_is_not_there(api: Api) -> None:
    assert api.ask("GET", "/v1/workloads/nobody") == (404, {"error": "no grafted workload 'nobody'"})
    assert api.ask("GET", "/v1/workloads/nobody/flows")[0] == 404
    assert api.ask("POST", "/v1/workloads/nobody/finish")[0] == 404
    assert api.ask("GET", "/v1/nothing")[0] == 404
    assert api.ask("DELETE", "/v1/workloads/web")[0] == 405
    assert api.ask("GET", "/v1/workloads/..%2F..%2Fetc")[0] == 404


@pytest.mark.parametrize("query", ["follow=perhaps", "other=1", "follow=1&folow=1"])
def test_a_wrong_parameter(api: Api, query: str) -> None:
    status, body = api.ask("GET", f"/v1/workloads/web/flows?{query}")
    assert status == 400
    assert "error" in body


def test_flows_up_to_now_and_followed(api: Api) -> None:
    api.add(flow(1))
    assert api.ask("GET", "/v1/workloads/web/flows")[1]["id"] == "1"
    connection = UnixConnection(api.path)
    connection.request("GET", "/v1/workloads/web/flows?follow=true")
    response = connection.getresponse()
    assert json.loads(response.readline())["id"] == "1"
    api.add(flow(2))
    assert json.loads(response.readline())["id"] == "2"
    response.close()
    connection.close()


def test_finish_is_answered_when_it_is_done(api: Api) -> None:
    assert api.ask("POST", "/v1/workloads/web/finish") == (200, {"name": "web", "finished": True})
    assert not (api.directory / "web.sock").exists()
    assert api.ask("POST", "/v1/workloads/exec-1/finish")[0] == 409


def test_a_socket_of_another_network_is_refused(api: Api) -> None:
    with connect_from_elsewhere(api.path) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET /v1/version HTTP/1.1\r\nHost: graft\r\nConnection: close\r\n\r\n")
        answer = _all(sock)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"another network namespace" in answer


def _all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(4096):
        data += part
    return data


def test_the_description_is_the_one_in_docs(api: Api) -> None:
    status, body = api.ask("GET", "/v1/openapi.json")
    assert status == 200
    assert body == openapi() == json.loads((TREE / "docs" / "openapi.json").read_text()), (
        "python -m netns_graft.broker.openapi > docs/openapi.json"
    )


def test_every_route_is_described_and_every_description_has_a_route() -> None:
    described = {
        (method.upper(), path) for path, operations in openapi()["paths"].items() for method in operations
    }
    routes = {
        (route.method, route.resource.canonical)
        for route in make_app("/nowhere").router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert routes == described


def test_answers_are_as_described(api: Api) -> None:
    schemas = openapi()["components"]["schemas"]
    _, workload = api.ask("GET", "/v1/workloads/web")
    assert set(workload) == set(schemas["Workload"]["properties"])
    assert set(workload["flows"]) == set(schemas["FlowCounts"]["properties"])
    assert set(api.ask("GET", "/v1/version")[1]) == set(schemas["Version"]["properties"])
    assert set(api.ask("GET", "/v1/nothing")[1]) == set(schemas["Problem"]["properties"])
