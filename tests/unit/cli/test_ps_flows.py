"""``ps`` and ``flows`` against real forwarder status sockets, and their start-up."""

from __future__ import annotations

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
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                asker, _ = self._sock.accept()
            except OSError:
                return
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
        self._thread.join()


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


def test_they_import_nothing_slow():
    heavy = {"aiohttp", "pydantic", "rich", "argparse", "asyncio", "pyroute2", "http.client", "netns_graft.policy"}
    program = (
        "import sys; from netns_graft.cli import main, ps, flows, client;"
        "print(sorted(set(sys.modules) & set(sys.argv)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == "[]"
