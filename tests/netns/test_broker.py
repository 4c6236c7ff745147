"""The broker and the hook by themselves: real namespaces, the real hook file, no container engine.

A "container" here is a process in a network namespace of its own, and a bundle with nothing but a config.json.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netns_graft.broker import workloads
from netns_graft.cli import api
from netns_graft.linux import control_sockets

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="network namespaces without an engine need root")

HOOK = Path(__file__).parents[2] / "hooks" / "oci_hook.py"
USER_NS = os.stat("/proc/self/ns/user").st_ino


def eventually(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return value


class Container:
    """A process in a namespace of its own; ``run`` runs others in there."""

    def __init__(self, place: Path, name: str, namespace: tuple[str, ...] = ("unshare", "--net")) -> None:
        self.name = name
        self.bundle = place / f"bundle-{name}"
        (self.bundle / "rootfs").mkdir(parents=True)
        (self.bundle / "config.json").write_text(json.dumps({"process": {"args": ["x"]}, "root": {"path": "rootfs"}}))
        self.process = subprocess.Popen(
            [*namespace, "sh", "-c", "echo up; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    @property
    def state(self) -> dict[str, Any]:
        return {"ociVersion": "1.0.2", "id": self.name, "pid": self.process.pid, "bundle": str(self.bundle)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={self.process.pid}", "--net", *command],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip

    def connects(self) -> str:
        """What connect(2) to an address that is denied gives: with a graft an answer at once."""
        code = "import socket; s = socket.socket(); s.settimeout(10); print(s.connect_ex(('192.0.2.1', 80)))"
        return self.run(sys.executable, "-c", code).stdout.strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Place:
    """A runtime directory, the hook with it, and what was started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = path / "run"
        self.runtime.mkdir(mode=0o700)
        self.log = path / "log"
        self.broker_place = self.runtime / f"broker-{USER_NS}"
        self.containers: list[Container] = []

    def container(self, name: str, *namespace: str) -> Container:
        made = Container(self.path, name, namespace or ("unshare", "--net"))
        self.containers.append(made)
        return made

    def hook(self, state: object, *arguments: str, stage: str = "createRuntime") -> subprocess.CompletedProcess[str]:
        text = state if isinstance(state, str) else json.dumps(state)
        command = [
            "/usr/bin/python3", "-IS", str(HOOK), "--stage", stage, "--runtime-dir", str(self.runtime),
            "--python", sys.executable, "--log", str(self.log), *arguments,
        ]  # fmt: skip
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    def graft(self, container: Container, *arguments: str) -> None:
        done = self.hook(container.state, "--set", "default=deny", *arguments)
        assert (done.returncode, done.stderr) == (0, ""), self.log.read_text()

    def names(self) -> list[str]:
        return workloads.names(str(self.runtime / "workloads"))

    def status(self, name: str) -> dict[str, Any]:
        return workloads.ask(str(self.runtime / "workloads"), name, {"do": "status"})

    def broker(self) -> int | None:
        """The pid of whoever listens on hook.sock."""
        try:
            with control_sockets.connect(str(self.broker_place / "hook.sock"), 5.0) as sock:
                return control_sockets.peer(sock)[0]
        except OSError:
            return None

    def close(self) -> None:
        for container in self.containers:
            container.end()
        eventually(lambda: not self.names())
        broker = self.broker()
        if broker is not None:
            os.kill(broker, signal.SIGTERM)
            eventually(lambda: self.broker() is None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def test_the_first_hook_starts_a_broker_and_the_next_ones_use_it(place: Place) -> None:
    one, two = place.container("one"), place.container("two")
    assert one.connects() == "101", "no network at all before"
    place.graft(one)
    broker = place.broker()
    place.graft(two)
    assert place.broker() == broker
    assert [one.connects(), two.connects()] == ["113", "113"]
    assert place.status("one")["flows"]["denied"] == 1


def test_a_graft_ends_with_the_last_process_in_its_network(place: Place) -> None:
    container = place.container("one")
    other = Container(place.path, "other", ("nsenter", f"--target={container.process.pid}", "--net"))
    place.containers.append(other)
    place.graft(container)
    container.end()
    assert place.status("one")["name"] == "one", "somebody is still in there"
    other.end()
    assert eventually(lambda: place.names() == [])


def test_poststop_waits_for_the_last_records(place: Place) -> None:
    container = place.container("one")
    flows = place.path / "flows.jsonl"
    place.graft(container, "--set", f"flows={flows}")
    container.connects()
    container.end()
    assert place.hook(container.state, stage="poststop").returncode == 0
    assert place.names() == []
    assert [json.loads(line)["outcome"] for line in flows.read_text().splitlines()] == ["denied"]


def test_poststop_never_fails_and_starts_nothing(place: Place) -> None:
    assert place.hook({"id": "nobody", "pid": 0, "bundle": "/nowhere"}, stage="poststop").returncode == 0
    assert place.hook("{", stage="poststop").returncode == 0
    assert not place.broker_place.exists()


def test_the_brokers_death_disturbs_nobody_and_the_next_one_finds_everything(place: Place) -> None:
    one, two = place.container("one"), place.container("two")
    place.graft(one)
    broker = place.broker()
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    assert eventually(lambda: place.broker() is None)
    assert one.connects() == "113"
    place.graft(two)
    assert place.broker() not in (None, broker)
    assert place.names() == ["one", "two"]
    one.end()
    assert place.hook(one.state, stage="poststop").returncode == 0
    assert place.names() == ["two"]


def test_a_forwarders_death_takes_one_network_and_nothing_else(place: Place) -> None:
    one, two = place.container("one"), place.container("two")
    place.graft(one)
    place.graft(two)
    broker = place.broker()
    os.kill(place.status("one")["pid"], signal.SIGKILL)
    assert eventually(lambda: one.connects() == "101"), "closed, not open"
    assert two.connects() == "113"
    assert place.broker() == broker
    assert [status["name"] for status in workloads.statuses(str(place.runtime / "workloads"))] == ["two"]
    assert place.names() == ["two"], "who found the stale socket removed it"


def asked(place: Place) -> int:
    """The status of an answer of the HTTP API; 0 for none."""
    try:
        with control_sockets.connect(str(place.broker_place / "api.sock"), 5.0) as sock:
            sock.sendall(b"GET /v1/version HTTP/1.1\r\nHost: graft\r\nConnection: close\r\n\r\n")
            return int(sock.makefile("rb").readline().split()[1])
    except (OSError, IndexError):
        return 0


def test_end_on_deny_ends_everybody_with_the_first_denial(place: Place) -> None:
    """Whoever is in W, and whoever asked."""
    container = place.container("one")
    other = Container(place.path, "other", ("nsenter", f"--target={container.process.pid}", "--net"))
    place.containers.append(other)
    place.graft(container, "--set", "allow=127.0.0.1", "--set", "end-on-deny=true")
    assert place.status("one")["policy"] == "deny; allow 127.0.0.1; ends with the first denial"
    assert container.process.poll() is None
    assert container.connects() == "", "killed before it heard"
    assert (container.process.wait(20), other.process.wait(20)) == (-9, -9)
    assert eventually(lambda: place.names() == [])
    assert "one: ended with its first denied flow" in place.log.read_text()


def test_nonsense_for_end_on_deny_is_refused(place: Place) -> None:
    state = place.container("one").state | {"annotations": {"io.netns-graft.end-on-deny": "1"}}
    assert "end-on-deny: '1' is neither true nor false" in refused(place.hook(state))


def test_the_api_says_of_a_forwarder_all_that_it_says_itself(place: Place) -> None:
    """A field that is new in one of them would make ``ps`` ask each by its own socket, and nobody would see."""
    place.graft(place.container("one"))
    assert eventually(lambda: asked(place) == 200)
    answer = api.get(str(place.broker_place / "api.sock"), "/v1/workloads", 10.0)
    assert answer == {"workloads": [place.status("one")]}
    assert api.sockets(str(place.runtime)) == [str(place.broker_place / "api.sock")]


@pytest.mark.parametrize("taken", [("hook.sock",), ("api.sock",), ("hook.sock", "api.sock"), ("starting", "hook.sock")])
def test_sockets_that_were_removed_are_made_anew(place: Place, taken: tuple[str, ...]) -> None:
    one, two = place.container("one"), place.container("two")
    place.graft(one)
    broker = place.broker()
    assert eventually(lambda: asked(place) == 200)
    for name in taken:
        (place.broker_place / name).unlink()
    place.graft(two)
    assert eventually(place.broker) == broker
    assert eventually(lambda: asked(place) == 200)
    assert [one.connects(), two.connects()] == ["113", "113"]


@pytest.mark.parametrize("taken", ["its lock", "its directory", "its directory, moved"])
def test_a_broker_whose_lock_was_removed_makes_room_for_the_next(place: Place, taken: str) -> None:
    """Two brokers for a moment: neither takes what is the other's, and nobody's workload is disturbed."""
    one, two = place.container("one"), place.container("two")
    place.graft(one)
    former = place.broker()
    assert former is not None
    os.kill(former, signal.SIGSTOP)  # so that the other one is there first
    try:
        match taken:
            case "its lock":
                (place.broker_place / "lock").unlink()
                (place.broker_place / "hook.sock").unlink()
            case "its directory":
                shutil.rmtree(place.broker_place)
            case _:
                place.broker_place.rename(place.path / "elsewhere")
        place.graft(two)
        broker = place.broker()
        assert broker not in (None, former)
    finally:
        os.kill(former, signal.SIGCONT)
    pid_fd = os.pidfd_open(former)
    select.select([pid_fd], [], [], 20)
    os.close(pid_fd)
    assert not Path(f"/proc/{former}/fd/2").exists(), "gone, or a zombie that its reaper has not looked at"
    assert place.broker() == broker
    assert sorted(place.names()) == ["one", "two"]
    assert [one.connects(), two.connects()] == ["113", "113"]


def serve(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netns_graft", "serve", "--runtime-dir", str(place.runtime), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_second_broker_is_harmless(place: Place) -> None:
    place.graft(place.container("one"))
    broker = place.broker()
    assert serve(place).returncode == 0
    assert place.broker() == broker


def test_an_idle_broker_leaves_and_takes_its_sockets(place: Place) -> None:
    assert serve(place, "--idle", "0.2").returncode == 0
    assert sorted(os.listdir(place.broker_place)) == ["lock"]


def test_a_process_in_a_graft_is_not_heard(place: Place) -> None:
    container = place.container("one")
    place.graft(container)
    broker = place.broker_place.name
    for name in (f"{broker}/hook.sock", f"{broker}/api.sock", "workloads/one.sock"):
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]);"
            "s.sendall(b'GET /v1/version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n') if 'api' in sys.argv[1] else None;"
            "print(s.recv(4096).decode())"
        )
        answer = container.run(sys.executable, "-c", code, str(place.runtime / name)).stdout
        assert "another network namespace" in answer


def test_the_log_is_kept_short(place: Place) -> None:
    """By the broker, and by a hook that finds none; what is newest stays, whole lines of it."""
    place.log.write_text("old\n" * 300_000 + "newest of the old\n")
    refused(place.hook(place.container("one").state, "--python", "/nowhere/python"))
    text = place.log.read_text()
    assert len(text) < 1 << 19
    assert text.startswith("old\n")
    assert "newest of the old\n" in text
    assert " hook one: netns-graft: error: the container was not started: " in text.splitlines()[-1]
    place.graft(place.container("two"))
    with open(place.log, "a") as file:
        file.write("more\n" * 300_000)
    place.graft(place.container("three"))
    assert eventually(lambda: place.log.stat().st_size < 1 << 19)
    assert eventually(lambda: "more\n" in place.log.read_text())


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why."""
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("netns-graft: error: the container was not started: ")
    return lines[0]


def test_a_namespace_with_an_interface_or_a_route_is_refused(place: Place) -> None:
    wired, routed = place.container("wired"), place.container("routed")
    wired.run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    assert "already has an interface, x" in refused(place.hook(wired.state))
    routed.run("ip", "link", "set", "lo", "up")
    routed.run("ip", "route", "add", "192.0.2.0/24", "dev", "lo")
    assert "already has a route" in refused(place.hook(routed.state))
    assert place.names() == []


def test_a_loopback_that_is_up_is_no_way_out(place: Place) -> None:
    container = place.container("one")
    container.run("ip", "link", "set", "lo", "up")
    place.graft(container)


def test_members_of_a_pod_join_and_another_policy_is_refused(place: Place) -> None:
    first = place.container("first")
    place.graft(first)
    member = Container(place.path, "member", ("nsenter", f"--target={first.process.pid}", "--net"))
    place.containers.append(member)
    place.graft(member)
    assert place.names() == ["first"]
    assert [one["id"] for one in place.status("first")["members"]] == ["first", "member"]
    state = member.state | {"id": "third", "annotations": {"io.netns-graft.default": "allow"}}
    assert "by another policy" in refused(place.hook(state))
    first.end()
    assert eventually(lambda: [one["id"] for one in place.status("first")["members"]] == ["member"])


def test_the_same_container_again_while_the_former_one_ends(place: Place) -> None:
    former = place.container("one")
    place.graft(former)
    former.end()
    again = Container(place.path / "again", "one")
    place.containers.append(again)
    place.graft(again)
    assert again.connects() == "113"


def test_no_broker_to_be_had(place: Place) -> None:
    container = place.container("one")
    state = container.state
    assert "is no program" in refused(place.hook(state, "--python", "/nowhere/python"))
    assert "does not start" in refused(place.hook(state, "--python", "/bin/false"))
    assert container.connects() == "101"


def test_a_broker_that_says_nothing(place: Place) -> None:
    place.broker_place.mkdir(mode=0o700)
    with control_sockets.listen(str(place.broker_place / "hook.sock")):
        done = place.hook(place.container("one").state, "--time-limit", "0.3")
    assert "no answer within 0.3 s" in refused(done)
    place.log.unlink()


def test_a_broker_that_leaves_while_it_is_asked_is_followed_by_another(place: Place) -> None:
    """Its socket is there, it takes the question and is gone."""
    place.broker_place.mkdir(mode=0o700)
    path = str(place.broker_place / "hook.sock")
    container = place.container("one")
    with control_sockets.listen(path) as leaving:
        hook = subprocess.Popen(
            ["/usr/bin/python3", "-IS", str(HOOK), "--stage", "createRuntime", "--runtime-dir", str(place.runtime),
             "--python", sys.executable, "--log", str(place.log)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert hook.stdin is not None
        hook.stdin.write(json.dumps(container.state).encode())
        hook.stdin.close()
        accepted, _ = leaving.accept()
        os.unlink(path)
        accepted.shutdown(socket.SHUT_RDWR)
        accepted.close()
    assert hook.wait(60) == 0
    assert hook.stderr is not None
    hook.stderr.close()
    assert place.names() == ["one"]
