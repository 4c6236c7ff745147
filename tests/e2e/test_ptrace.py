"""``exec --mode ptrace``: what programs see is what they see untraced, and what holds in this mode alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import addresses as at
from lab.grafting import NO_SANDBOX, Host, descendants, read_flows, read_line
from lab.identities import installed_command
from lab.internet import Lab, eventually

import netns_graft

pytestmark = pytest.mark.ptrace
PYTHON = "/usr/bin/python3"

PLACES = [
    (at.WEB, at.HTTP), (at.WEB, at.CLOSED), (at.UNREACHABLE, at.HTTP), (at.WEB6, at.HTTP), (at.WEB6, at.CLOSED),
    (at.HOST, at.CLOSED), ("127.0.0.1", at.CLOSED), ("example.com", at.HTTP), ("nowhere.example", at.HTTP),
]  # fmt: skip


@pytest.fixture
def mode() -> str:
    return "ptrace"


@pytest.fixture(scope="session")
def tellers(programs: Path) -> dict[str, list[str]]:
    """Programs in several languages that tell what connect() gives, how each is run."""
    for kind, options in (("dynamic", []), ("static", ["-static"])):
        made = programs / f"tell-{kind}"
        # A static getaddrinfo() makes the linker speak.
        command = ["gcc", *options, "-o", str(made), str(programs / "tell.c")]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    subprocess.run(
        ["go", "build", "-o", str(programs / "tell-go"), str(programs / "tell.go")], check=True, timeout=300,
        env={
            **os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "",
            "GOCACHE": str(programs.parent / "go-cache"), "HOME": str(programs.parent),
        },
    )  # fmt: skip
    subprocess.run(["javac", "-d", str(programs), str(programs / "Tell.java")], check=True, timeout=120)
    for file in programs.iterdir():
        file.chmod(0o755)
    return {
        "C": [str(programs / "tell-dynamic")],
        "C, static": [str(programs / "tell-static")],
        "Go, static": [str(programs / "tell-go")],
        "python": [PYTHON, str(programs / "tell.py")],
        "node": ["node", str(programs / "tell.js")],
        "Java": ["java", "-Xshare:auto", "-cp", str(programs), "Tell"],
    }


@pytest.mark.parametrize("language", ["C", "C, static", "Go, static", "python", "node", "Java"])
def test_programs_tell_the_same(host: Host, tellers: dict[str, list[str]], language: str) -> None:
    words = [str(word) for place in PLACES for word in place]
    direct = host.run(*tellers[language], *words)
    traced = host.graft([], *tellers[language], *words)
    assert (direct.returncode, direct.stderr) == (0, b"")
    assert (traced.status, traced.stderr) == (0, "")
    assert traced.stdout.decode().splitlines() == direct.stdout.decode().splitlines()
    flows = traced.tcp()
    assert {flow["attribution"]["method"] for flow in flows} == {"ptrace"}
    # The loopback and the host's own address are not ours to carry.
    assert {flow["destination"]["address"] for flow in flows} >= {at.WEB, at.WEB6, at.UNREACHABLE}
    assert not {flow["destination"]["address"] for flow in flows} & {at.HOST, "127.0.0.1"}


MANY = f"""
import json, os, socket, sys
for _ in range(50):
    if os.fork() == 0:
        told = []
        for _ in range(20):
            with socket.create_connection(("{at.WEB}", {at.HTTP})) as sock:
                told.append([os.getpid(), sock.getsockname()[1]])
                sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                while sock.recv(65536):
                    pass
        os.write(1, (json.dumps(told) + "\\n").encode())
        os._exit(0)
for _ in range(50):
    assert os.wait()[1] == 0
"""


def test_a_thousand_connections_of_fifty_processes(host: Host) -> None:
    done = host.graft([], PYTHON, "-c", MANY, timeout=110)
    assert (done.status, done.stderr) == (0, "")
    truth = sorted(tuple(pair) for line in done.stdout.splitlines() for pair in json.loads(line))
    assert len(truth) == 1000
    assert sorted((flow["process"]["pid"], flow["source"]["port"]) for flow in done.tcp()) == truth
    assert {flow["outcome"] for flow in done.tcp()} == {"ok"}


class TestEnds:
    def test_the_forwarder_is_killed(self, host: Host) -> None:
        """Nothing that it traced goes on."""
        script = "import os, time\nos.fork()\nos.fork()\nprint('ready', flush=True)\ntime.sleep(100)"
        with host.started([], PYTHON, "-c", script) as process:
            for _ in range(4):
                assert read_line(process) == "ready"
            family = descendants(process.pid)
            forwarder = next(pid for pid in family if _comm(pid) == "graft-forwarder")
            os.kill(forwarder, signal.SIGKILL)
            assert process.wait(timeout=20) == 125
            assert process.stderr is not None
            assert b"the forwarder died" in process.stderr.read()
        assert eventually(lambda: not [pid for pid in family if _comm(pid) is not None])

    def test_the_supervisor_is_killed(self, host: Host) -> None:
        with host.started([], "sh", "-c", "sleep 100 & echo ready; wait") as process:
            assert read_line(process) == "ready"
            family = [process.pid, *descendants(process.pid)]
            supervisor = next(pid for pid in family if _comm(pid) == "netns-graft")
            os.kill(supervisor, signal.SIGKILL)
            process.wait(timeout=20)
        family.remove(process.pid)  # dead, and to be buried by us
        assert eventually(lambda: not [pid for pid in family if _comm(pid) is not None])

    def test_what_stays_behind_ends(self, host: Host) -> None:
        done = host.graft([], "sh", "-c", "sleep 101.5 >/dev/null 2>&1 & echo $!")
        assert done.status == 0
        assert eventually(lambda: _comm(int(done.stdout)) is None)


def _comm(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


class TestPrivileges:
    @pytest.fixture
    def set_uid_id(self, lab: object, programs: Path) -> str:
        """A set-uid program that says who it is."""
        path = programs / "id-of-root"
        if not path.exists():
            shutil.copy("/usr/bin/id", path)
            path.chmod(0o4755)
        return str(path)

    def test_root_runs_as_a_user_and_set_uid_works(self, root_host: Host, set_uid_id: str) -> None:
        done = root_host.graft(["--user", "graft-test"], "sh", "-c", f"id -un; {set_uid_id} -un; echo $HOME")
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout.decode().split() == ["graft-test", "root", "/home/graft-test"]

    def test_without_privileges_a_line_says_what_happened(self, user_host: Host, set_uid_id: str) -> None:
        done = user_host.graft([], set_uid_id, "-un")
        assert done.stdout == b"graft-test\n"
        (line,) = done.stderr.splitlines()
        assert line.startswith("netns-graft: warning: ")
        assert set_uid_id in line
        assert "without" in line

    def test_the_line_is_fit_for_a_terminal(self, user_host: Host, programs: Path) -> None:
        """A program's name is the workload's to choose."""
        path = programs / "id\x1b]0;title\x07\n"
        shutil.copy("/usr/bin/id", path)
        path.chmod(0o4755)
        done = user_host.graft([], str(path), "-un")
        (line,) = done.stderr.splitlines()
        assert "id\\x1b]0;title\\x07\\n is set-uid" in line

    def test_only_root_may_ask_for_a_user(self, user_host: Host, root_host: Host) -> None:
        done = user_host.graft(["--user", "root"], "id")
        assert done.status == 125
        assert "only root" in done.error_line()
        done = root_host.graft(["--user", "nobody-of-that-name"], "id")
        assert done.status == 125
        assert "no user" in done.error_line()


def test_a_program_that_traces_is_told(host: Host) -> None:
    done = host.graft([], "strace", "-o", "/dev/null", "true")
    assert done.status != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("netns-graft: ")]
    assert len(ours) == 1
    assert "strace" in ours[0]


TRY = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def said(name, call):
    try:
        call()
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
def ring():
    params = ctypes.create_string_buffer(120)
    fd = libc.syscall(425, 4, params)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(fd)
def space():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
said("ring", ring)
said("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
said("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
said("stream", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close())
said("unix", lambda: socket.socketpair()[0].close())
said("space", space)
"""


class TestStrict:
    def test_strict_closes_what_passes_by(self, host: Host) -> None:
        done = host.graft(["--strict"], PYTHON, "-c", TRY)
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout.decode().splitlines() == [
            "ring EPERM", "raw EPERM", "packet EPERM", "stream ok", "unix ok", "space EPERM",
        ]  # fmt: skip

    def test_without_it_they_are_the_kernels(self, root_host: Host) -> None:
        direct = root_host.run(PYTHON, "-c", TRY)
        assert root_host.graft([], PYTHON, "-c", TRY).stdout == direct.stdout

    @pytest.mark.parametrize("program", ["curl", "wget", "git", "node", "go", "Java"])
    def test_programs_run_under_it(
        self, user_host: Host, programs: Path, tellers: dict[str, list[str]], program: str
    ) -> None:
        command = {
            "curl": ["curl", "-sSf", "-o", "/dev/null", "http://example.com/"],
            "wget": ["wget", "-q", "-O", "/dev/null", "http://example.com/"],
            "git": ["git", "clone", "-q", "http://example.com/repository.git", "clone"],
            "node": ["node", str(programs / "fetch.js"), "http://example.com/"],
            "go": [str(programs / "fetch-static"), "http://example.com/"],
            "Java": [*tellers["Java"], at.WEB, str(at.HTTP)],
        }[program]
        done = user_host.graft(["--strict"], *command)
        assert (done.status, done.stderr) == (0, "")
        assert [flow["outcome"] for flow in done.tcp()][:1] == ["ok"]


def test_udp_is_closed_and_told(host: Host) -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"try: s.sendto(b'x', ('{at.WEB}', 443)); print('sent')\n"
        "except OSError as error: print(error.strerror)"
    )
    done = host.graft([], PYTHON, "-c", script)
    assert done.stdout == b"No route to host\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"netns-graft: warning: UDP to {at.WEB} port 443 is closed")
    (flow,) = done.flows
    assert (flow["protocol"], flow["verdict"], flow["outcome"]) == ("udp", "deny", "denied")
    assert flow["destination"] | {"address": at.WEB, "port": 443} == flow["destination"]
    assert flow["process"]["exe"] == str(Path(PYTHON).resolve())


def test_it_says_that_it_is_no_sandbox_but_in_a_graft(user_host: Host) -> None:
    argv = user_host.graft_argv([], ["true"])
    alone = user_host.run(*argv)
    assert alone.stderr.decode().count(NO_SANDBOX) == 1
    assert alone.stderr.count(b"\n") == 1
    within = user_host.run(installed_command(), "exec", "--", *argv)
    assert (within.returncode, within.stderr) == (0, b"")


def test_our_sockets_are_closed_to_it(user_host: Host) -> None:
    """The namespace is shared, so they cannot know by it who asks."""
    script = (
        "import glob, os, socket\n"
        "(path,) = glob.glob(os.environ['XDG_RUNTIME_DIR'] + '/netns-graft/workloads/exec-*.sock')\n"
        "os.chdir(os.path.dirname(path))\n"
        "for name in (path, './' + os.path.basename(path)):\n"
        "    try: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(name); print('in')\n"
        "    except OSError as error: print(error.strerror)\n"
        "    try: socket.socket(socket.AF_UNIX).connect(name); print('in')\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    done = user_host.graft([], PYTHON, "-c", script)
    assert (done.status, done.stdout.decode().splitlines()) == (0, ["Permission denied"] * 4), done.stderr


class TestTranslatedLoopback:
    """The fault that broke this idea's ancestor, rule for rule: what arrives from loopback has another source."""

    SNAT = "172.31.5.9"

    @pytest.fixture(
        params=["snat to 172.31.5.9", "snat to 172.31.5.9:40000-40010", "masquerade fully-random"],
        ids=["snat", "another port", "masquerade"],
    )
    def translated(self, request: pytest.FixtureRequest, lab: Lab) -> Iterator[None]:
        rule = f"meta l4proto {{ tcp, udp }} ip saddr 127.0.0.1 {request.param}"
        lab.host.run("ip", "address", "add", f"{self.SNAT}/32", "dev", "lo")
        chain = f"type nat hook postrouting priority 100;\n{rule}\n"
        lab.host.run("nft", "-f", str(lab.file(f"table ip translated {{\nchain c {{\n{chain}}}\n}}\n")))
        yield
        lab.host.run("nft", "delete table ip translated")
        lab.host.run("ip", "address", "del", f"{self.SNAT}/32", "dev", "lo")

    def test_the_right_process_all_the_same(self, host: Host, translated: None) -> None:
        """Towards a local listener and by a loopback resolver, which both see the translated source."""
        script = (
            f"import os, socket; s = socket.create_connection(('127.0.0.1', {at.HOST_LOOPBACK_PAGE}));"
            "print(os.getpid(), s.getsockname()[1]); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n');"
            "print(s.makefile().read().count('hello'));"
            "print(socket.getaddrinfo('example.com', 80, socket.AF_INET)[0][4][0])"
        )
        done = host.graft(
            ["--not-ignore-local", "--dns", "synthetic"], PYTHON, "-c", script, resolv_conf="nameserver 127.0.0.1\n"
        )
        assert (done.status, done.stderr) == (0, "")
        pid, port, count, _address = done.stdout.decode().split()
        assert count == "1"
        flow = done.one_tcp()
        assert (flow["process"]["pid"], flow["source"]) == (int(pid), {"address": "127.0.0.1", "port": int(port)})
        assert {flow["process"]["pid"] for flow in done.flows} == {int(pid)}
        assert "dns" in {flow["protocol"] for flow in done.flows}

    def test_sock_diag_and_conntrack_agree(self, root_host: Host, translated: None) -> None:
        """A second look, from outside, by what the wire shows: the same process, with the translation undone."""
        script = (
            f"import os, socket, sys; s = socket.create_connection(('127.0.0.1', {at.HOST_LOOPBACK_PAGE}));"
            "print(os.getpid(), s.getsockname()[1], flush=True); sys.stdin.read()"
        )
        with root_host.started(["--not-ignore-local"], PYTHON, "-c", script) as process:
            pid, port = map(int, read_line(process).split())
            told = root_host.run("conntrack", "-L", "-p", "tcp", "-s", "127.0.0.1", "--sport", str(port)).stdout
            wire = r"ESTABLISHED.* src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"  # of its replies
            ((here, seen, room, seen_port),) = re.findall(wire, told.decode())
            assert seen != "127.0.0.1"
            asked = root_host.run(sys.executable, "-c", WHO, OURS, seen, seen_port, here, room)
            assert json.loads(asked.stdout) == [pid, [[f"{seen}:{seen_port}", f"127.0.0.1:{port}"]]], asked.stderr
            process.communicate(b"", timeout=20)


OURS = str(Path(netns_graft.__file__).parents[1])  # where the package under test lies
# The attribution of mode route, asked about a connection as the wire shows it.
WHO = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from netns_graft.attribution import Attributor
from netns_graft.linux.vantage import Vantage
source, port, target, target_port = sys.argv[2:]
who = Attributor(Vantage(os.open("/proc/self/ns/net", os.O_RDONLY))).who(
    socket.IPPROTO_TCP, socket.inet_aton(source), int(port), socket.inet_aton(target), int(target_port))
print(json.dumps([who.process and who.process.pid, [[step.seen, step.real] for step in who.nat]]))
"""


def test_none_in_another(user_host: Host) -> None:
    for mode in ("ptrace", "route"):
        done = user_host.graft([], installed_command(), "exec", "--mode", mode, "--", "true")
        assert done.status == 125
        assert "mode ptrace is around us" in done.error_line()


def test_where_there_are_no_user_namespaces(user_host: Host) -> None:
    """What this mode is for: mode route cannot be had, this one works."""
    flows = user_host.flows_file()
    fetch = ["--flows", str(flows), "--", "curl", "-sSf", "-o", "/dev/null", f"http://{at.WEB}/"]
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    for mode, status in (("route", 125), ("ptrace", 0)):
        done = user_host.run(
            "unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh",
            "setpriv", "--bounding-set=-all", "--inh-caps=-all", installed_command(), "exec", "--mode", mode, *fetch,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
    (flow,) = read_flows(flows)
    assert (flow["outcome"], flow["attribution"]["method"]) == ("ok", "ptrace")


def test_ps_shows_the_mode(user_host: Host) -> None:
    with user_host.started([], "sh", "-c", "echo ready; sleep 100") as process:
        assert read_line(process) == "ready"
        shown = user_host.run(installed_command(), "ps", "--json").stdout.splitlines()
        assert [json.loads(line)["mode"] for line in shown] == ["ptrace"]
