"""``ps`` and ``flows`` against real forwarder status sockets, and their start-up."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from netns_graft.broker.front import make_app
from netns_graft.cli import client
from netns_graft.cli.main import main
from netns_graft.linux import control_sockets, places

STATUS = {
    "name": "exec-4242", "kind": "exec", "container_id": None, "container_name": None, "mode": "route",
    "policy": "deny; allow example.org:443", "upstream": "direct", "started": 0.0,
    "flows": {"open": 1, "total": 7, "denied": 2, "unattributed": 3, "questions": 0},
    "bytes": {"sent": 517, "received": 5230},
}  # fmt: skip
RECORD = {
    "schema": 1, "id": "1", "workload": "exec-4242", "container_id": None,
    "started": "2026-11-22T18:20:14.283421Z", "duration": 0.01, "protocol": "tcp",
    "source": {"address": "198.18.0.1", "port": 40898},
    "destination": {"address": "93.184.216.34", "port": 443, "host": "example.org", "host_source": "synthetic"},
    "process": {"pid": 4250, "container_pid": None, "exe": "/usr/bin/cu\x1brl", "argv": [], "uid": 0, "parents": []},
    "attribution": {"method": "sock_diag", "nat": [], "micros": 74}, "verdict": "deny", "rule": "default",
    "upstream": None, "bytes_sent": 0, "bytes_received": 0, "outcome": "denied", "error": None,
}  # fmt: skip


class Answerer:
    """Answers as a forwarder does; what it says is the test's."""

    def __init__(self, path: str, status: dict[str, Any], records: list[dict[str, Any]]) -> None:
        self.status, self.records = status, records
        self.released = threading.Event()  # a follower gets its end of file
        self._sock = control_sockets.listen(path)
        self._askers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                asker, _ = self._sock.accept()
            except OSError:
                return
            self._askers.append(threading.Thread(target=self._answer, args=(asker,)))
            self._askers[-1].start()

    def _answer(self, asker: socket.socket) -> None:
        with asker:
            question = json.loads(asker.makefile().readline())
            answers = [self.status] if question["do"] == "status" else self.records
            asker.sendall("".join(json.dumps(answer) + "\n" for answer in answers).encode())
            if question.get("follow"):
                self.released.wait()

    def close(self) -> None:
        self.released.set()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for thread in (self._thread, *self._askers):
            thread.join()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(places, "runtime_dir", lambda: str(tmp_path))
    return places.workloads_dir(str(tmp_path))


@pytest.fixture
def answerer(directory: str) -> Iterator[Callable[..., Answerer]]:
    made: list[Answerer] = []

    def make(name: str, records: list[dict[str, Any]] | None = None, **changed: Any) -> Answerer:
        path = f"{directory}/{name}.sock"
        made.append(Answerer(path, {**STATUS, "name": name, **changed}, records or []))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_ps_shows_a_line_for_each_workload(answerer, capsys):
    answerer("exec-4242", started=time.time() - 200)
    answerer("0123456789ab", container_id="0123456789abcdef", container_name="web", started=time.time() - 1)
    assert main(["ps"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["NAME", "CONTAINER"]
    assert first.split() == [
        "exec-4242", "-", "route", "1", "7", "2", "3", "517", "B", "5.1", "KiB", "3m", "direct", "deny;", "allow",
        "example.org:443",
    ]  # fmt: skip
    assert second.split()[:2] == ["0123456789ab", "web"]


def test_ps_json_is_what_the_forwarder_said(answerer, capsys):
    answerer("exec-1")
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**STATUS, "name": "exec-1"}


def test_ps_of_nothing_is_a_heading(directory, capsys):
    assert main(["ps"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_socket_that_nobody_answers_on_is_passed_over_and_removed(directory, answerer, capsys):
    control_sockets.listen(f"{directory}/dead.sock").close()
    answerer("alive")
    assert main(["ps", "--json"]) == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["alive"]
    assert [path.name for path in Path(directory).iterdir()] == ["alive.sock"]


def test_flows_in_words_are_fit_for_a_terminal(answerer, capsys):
    answerer("exec-4242", [RECORD])
    assert main(["flows", "exec-4242"]) == 0
    assert capsys.readouterr().out == (
        "18:20:14.283 exec-4242 cu\\x1brl[4250] -> example.org:443 denied: default; 0 sent, 0 received\n"
    )


def test_flows_as_json_are_the_records(answerer, capsys):
    answerer("exec-1", [RECORD, {**RECORD, "process": None}])
    answerer("exec-2", [RECORD])
    assert main(["flows", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [RECORD, {**RECORD, "process": None}, RECORD]


def test_a_process_that_nobody_found_is_unknown(answerer, capsys):
    answerer("exec-1", [{**RECORD, "process": None}])
    main(["flows"])
    assert " unknown -> " in capsys.readouterr().out


def test_following_ends_with_the_workload(answerer, capsys):
    one = answerer("exec-1", [RECORD])
    one.released.set()
    assert main(["flows", "exec-1", "--follow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RECORD


def test_newcomers_are_followed_too(answerer):
    records = client.follow([], newcomers=True)
    answerer("exec-9", [RECORD])
    assert next(records) == RECORD
    records.close()


@pytest.mark.parametrize("wanted", ["web", "0123456789abcdef", "0123", "workload"])
def test_a_workload_is_found_by_name_container_and_beginning_of_its_id(answerer, wanted):
    answerer("workload", container_id="0123456789abcdef", container_name="web")
    answerer("other", container_id="0ff", container_name="db")
    assert client.find(wanted).name == "workload"


def test_none_and_several_are_told(answerer, capsys):
    answerer("a", container_id="0123")
    answerer("b", container_id="0145")
    assert main(["flows", "nosuch"]) == 125
    assert "no grafted workload 'nosuch'" in capsys.readouterr().err
    assert main(["flows", "01"]) == 125
    assert "several: a, b" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["ps --nosuch", "ps web", "flows --nosuch", "flows a b"])
def test_wrong_usage(directory, capsys, line):
    assert main(line.split()) == 2
    assert "unknown argument" in capsys.readouterr().err


class BrokersApi:
    """The real API over the same forwarders, as a broker serves it."""

    def __init__(self, runtime: Path) -> None:
        self.used = 0
        place = runtime / "broker-4026531837"
        place.mkdir()
        self._sock = control_sockets.listen(str(place / "api.sock"))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(str(runtime / "workloads"))))
        self._thread.start()
        self._ready.wait(10)

    async def _serve(self, directory: str) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(make_app(directory, self._use), handler_cancellation=True, shutdown_timeout=0.01)
        await runner.setup()
        await web.SockSite(runner, self._sock).start()
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    def _use(self) -> None:
        self.used += 1

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)


@pytest.fixture
def api(directory: str) -> Iterator[BrokersApi]:
    served = BrokersApi(Path(directory).parent)
    yield served
    served.close()


WHOLE = STATUS | {
    "members": [], "dns": "synthetic", "hold": True, "pid": 1, "workload_pid": 2, "network_namespace": 3,
}  # fmt: skip


def test_a_broker_is_asked_and_says_the_same(answerer, api, capsys):
    whole = {key: value for key, value in WHOLE.items() if key != "name"}
    answerer("exec-4242", [RECORD], **whole)
    told = []
    for asked in (0, 1, 3):
        assert api.used == asked
        assert main(["ps", "--json"] if asked == 0 else ["flows", "--json"]) == 0
        told.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert told == [[WHOLE], [RECORD], [RECORD]]


def test_what_the_broker_does_not_know_is_asked_itself(answerer, api, capsys):
    """A forwarder of another version, say."""
    answerer("exec-1", started=1.0, news="of a later version")
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["news"] == "of a later version"
    assert api.used == 1


@pytest.mark.parametrize("broker", ["dead", "silent", "no broker", "cut short"])
def test_a_broker_that_is_of_no_use(directory, answerer, broker, capsys, monkeypatch):
    monkeypatch.setattr(client, "_API_PATIENCE", 0.1)
    place = Path(directory).parent / "broker-1"
    place.mkdir()
    sock = control_sockets.listen(str(place / "api.sock"))
    said = {"no broker": b"hello\r\n", "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"}.get(broker)
    thread = threading.Thread(target=lambda: _say_once(sock, said or b""))
    if broker == "dead":
        sock.close()
    elif said is not None:
        thread.start()
    answerer("exec-1")
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "exec-1"
    if said is not None:
        thread.join()
    sock.close()


def _say_once(sock: socket.socket, said: bytes) -> None:
    asker, _ = sock.accept()
    with asker:
        asker.recv(4096)
        asker.sendall(said)


def test_a_broker_that_leaves_is_no_end_and_no_flow_comes_twice(answerer, api):
    one = answerer("exec-4242", [RECORD], **{key: value for key, value in WHOLE.items() if key != "name"})
    (known,) = client.workloads()
    assert known.api is not None
    records = client.follow([known], newcomers=False)
    assert next(records) == RECORD
    one.records = [RECORD, {**RECORD, "id": "2"}]
    api.close()
    assert next(records)["id"] == "2"
    one.released.set()
    assert list(records) == []


def test_they_import_nothing_slow():
    heavy = {
        "aiohttp", "pydantic", "rich", "argparse", "asyncio", "pyroute2", "http.client", "h11", "netns_graft.policy",
    }  # fmt: skip
    program = (
        "import sys; from netns_graft.cli import main, ps, flows, client;"
        "print(sorted(set(sys.modules) & set(sys.argv)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == "[]"
