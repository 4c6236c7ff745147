"""One graft with programs that tell the truth about themselves, and the score of its records against that."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.child import fork, wait
from ground.grafts import Graft, Record, graft
from ground.network import OTHER, WEB, WEB6, Network, configure, internet, sysctl, veth

WAIT = 20.0
SCORES = "TRUTH_SCORES"  # environment: the file that scores are appended to, for the matrix
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, frozen=True)
class Truth:
    """What a program says of one of its sockets."""

    pid: int
    source: tuple[str, int]
    asked: tuple[str, int]
    time: float


@dataclass(slots=True)
class Score:
    right: int = 0
    null: int = 0
    wrong: int = 0
    missing: int = 0

    def __str__(self) -> str:
        return f"{self.right} right, {self.null} null, {self.wrong} wrong, {self.missing} missing"


class Ledger:
    """A file to which every process appends its lines; short lines are written whole."""

    def __init__(self) -> None:
        fd, self.path = tempfile.mkstemp(prefix="truth-")
        os.close(fd)
        self._write_fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.chmod(self.path, 0o666)  # programs may be somebody else

    def note(self, sock: socket.socket, asked: tuple[str, int] | None = None) -> None:
        """From the program: this process has just connected ``sock`` (to ``asked``, else its peer)."""
        source = sock.getsockname()[:2]
        line = [os.getpid(), _plain(source), _plain(asked or sock.getpeername()[:2]), time.monotonic()]
        os.write(self._write_fd, json.dumps(line).encode() + b"\n")

    def read(self) -> list[Truth]:
        with open(self.path) as file:
            lines = [json.loads(line) for line in file]
        return [Truth(pid, tuple(source), tuple(asked), at) for pid, source, asked, at in lines]

    def close(self) -> None:
        os.close(self._write_fd)
        os.unlink(self.path)


def _plain(end: tuple[str, int]) -> tuple[str, int]:
    return (end[0].removeprefix("::ffff:") if "." in end[0] else end[0]), end[1]


class Scene:
    """A graft on the small Internet of ``ground.network``, with a server on WEB, WEB6 and OTHER, port 80."""

    def __init__(self, it: Graft, inet: Network) -> None:
        self.it, self.inet = it, inet
        self.ledger = Ledger()
        self.records: list[Record] = []
        self._programs: list[int] = []
        self._servers: list[int] = []
        self.workload = it.workload

    def serve(self, address: str, port: int = 80) -> None:
        """Accept, read to the end, close; for ever."""
        listener = self.inet.listener(address, port, backlog=4096)
        listener.settimeout(None)

        def work() -> None:
            open_socks: dict[int, socket.socket] = {}
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            while True:
                for fd, _ in poll.poll():
                    if fd == listener.fileno():
                        sock, _ = listener.accept()
                        open_socks[sock.fileno()] = sock
                        poll.register(sock, select.POLLIN)
                        continue
                    try:
                        more = open_socks[fd].recv(65536)
                    except ConnectionError:
                        more = b""
                    if not more:
                        poll.unregister(fd)
                        open_socks.pop(fd).close()

        self._servers.append(fork(work))
        listener.close()

    # Programs

    def program(self, work: Callable[[], object], inside: Network | None = None) -> int:
        """``work`` in a process of its own in W (or ``inside``)."""

        def enter_and_work() -> None:
            signal.alarm(400)
            (inside or self.workload).enter()
            work()

        pid = fork(enter_and_work)
        self._programs.append(pid)
        return pid

    def once(self, address: str, port: int = 80, **how: Any) -> Callable[[], None]:
        """A program's work: connect, tell, send a byte, end."""
        return lambda: self.connect(address, port, **how).close()

    def connect(
        self, address: str, port: int = 80, *, bound: tuple[str, int] | None = None,
        asked: tuple[str, int] | None = None, options: Sequence[tuple[int, int, Any]] = (),
    ) -> socket.socket:  # fmt: skip
        """In the program."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        for option in options:
            sock.setsockopt(*option)
        sock.settimeout(WAIT)
        if bound:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(bound)
        sock.connect((address, port))
        sock.settimeout(None)
        self.ledger.note(sock, asked)
        sock.send(b"x")
        return sock

    def ask(self, question: bytes, server: tuple[str, int], *, bound: tuple[str, int] | None = None) -> bytes:
        """In the program: a DNS question over UDP, its answer."""
        with socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(WAIT)
            if bound:
                sock.bind(bound)
            sock.connect(server)
            self.ledger.note(sock)
            sock.send(question)
            return sock.recv(4096)

    def run_all(self) -> None:
        """Wait for the programs; each must have ended well."""
        programs, self._programs = self._programs, []
        statuses = {pid: wait(pid) for pid in programs}
        assert not any(statuses.values()), f"programs failed: {statuses}"

    # What an administrator of W would do

    def inside(self, *command: str, text: str = "", network: Network | None = None) -> str:
        """Run a tool in W with every capability of the user namespace."""
        where = network or self.workload

        def prepare() -> None:
            where.enter()
            keep_capabilities()

        done = subprocess.run(
            command, input=text, capture_output=True, text=True, preexec_fn=prepare, timeout=20, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def nat(self, rules: str, *, hook: str = "postrouting", family: str = "ip", network: Network | None = None) -> None:
        """NAT rules, one a line, in a chain of their own."""
        kind = f"type nat hook {hook} priority {'100' if hook == 'postrouting' else '-100'};"
        self.inside(
            "nft", "-f", "-", network=network,
            text=f"table {family} truth {{ chain {hook} {{ {kind}\n{rules}\n}}\n}}\n",
        )  # fmt: skip

    def address(self, address: str, link: str = "eth0") -> None:
        with self.workload.inside():
            configure(link, address)

    @contextmanager
    def nested(
        self, above: Network, name: str, gateway: str, address: str, *, bridge: str | None = None
    ) -> Iterator[Network]:
        """A namespace behind ``above``: a veth (a port of ``bridge`` when named), a default route, forwarding."""
        with Network() as inner:
            with above.inside():
                veth(name, "eth0", inner)
                if bridge:
                    self.inside("ip", "link", "set", name, "master", bridge, "up", network=above)
                else:
                    configure(name, f"{gateway}/24")
                sysctl("net/ipv4/ip_forward", "1")
            with inner.inside():
                configure("eth0", f"{address}/24")
                if bridge:  # two containers on one bridge need MACs of their own
                    self.inside("ip", "link", "set", "eth0", "address", _mac(address), network=inner)
                self.inside("ip", "route", "add", "default", "via", gateway, network=inner)
            yield inner

    # The score

    def score(self, flows: int, *, protocol: str = "tcp") -> Score:
        """Wait for ``flows`` records and for the programs; compare each."""
        while len(self.records) < flows:
            record = self.it.flow()
            if record["protocol"] == protocol:
                self.records.append(record)
        self.run_all()
        truths: dict[tuple[tuple[str, int], tuple[str, int]], list[Truth]] = {}
        for truth in sorted(self.ledger.read(), key=lambda truth: truth.time):
            truths.setdefault((truth.source, truth.asked), []).append(truth)
        score = Score()
        for record in self.records:
            source = (record["source"]["address"], record["source"]["port"])
            asked = record["destination"]["asked"]
            goal = _parsed(asked) if asked else (record["destination"]["address"], record["destination"]["port"])
            said = truths.get((source, goal), [])
            if record["process"] is None:
                score.null += 1
            elif said and said[0].pid == record["process"]["pid"]:
                score.right += 1
            else:
                score.wrong += 1
            if said:
                del said[0]  # the same ports may be used again, one after the other
        score.missing = max(0, sum(map(len, truths.values())) - score.null)
        return score

    def close(self) -> None:
        for pid in (*self._programs, *self._servers):
            os.kill(pid, signal.SIGKILL)
            wait(pid)
        self.ledger.close()


def _parsed(end: str) -> tuple[str, int]:
    address, _, port = end.rpartition(":")
    return address.strip("[]"), int(port)


def _mac(address: str) -> str:
    return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))


@contextmanager
def scene(method: str = "auto", *rules: tuple[str, str], **settings: Any) -> Iterator[Scene]:
    """``rules`` and ``settings`` as for ``ground.grafts.graft``."""
    with internet() as inet, graft(*rules, attribution=method, **settings) as it:
        made = Scene(it, inet)
        try:
            for address in (WEB, WEB6, OTHER):
                made.serve(address)
            yield made
        finally:
            made.close()


def report(row: str, case: str, method: str, score: Score) -> None:
    """For the matrix at the end."""
    if path := os.environ.get(SCORES):
        line = [row, case, method, score.right, score.null, score.wrong, score.missing]
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def keep_capabilities() -> None:
    """Let the next exec keep what this process may do, though its uid is not 0: ambient capabilities."""
    class Head(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    head, data = Head(0x20080522, 0), (Data * 2)()
    assert _libc.capget(ctypes.byref(head), ctypes.byref(data)) == 0
    for part in data:
        part.inheritable = part.permitted
    assert _libc.capset(ctypes.byref(head), ctypes.byref(data)) == 0
    for capability in range(64):
        if data[capability // 32].permitted >> capability % 32 & 1:
            _libc.prctl(47, 2, capability, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
