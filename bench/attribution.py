"""What it costs to name the process: a workload of 100 processes with 50 descriptors each, and young ones beside them.

Each flow is opened by one of the old processes, picked at random, or (one in ten) by a new process that connects,
sends and ends. The figures are the records' own ``attribution.micros``. The last line is the plain way, in the same
run: read /proc/net/tcp, then every link in /proc/*/fd until one matches. Needs neither root nor the lab.

Usage: attribution.py [--flows N] [--processes N] [--descriptors N]
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from ground.child import end, fork, in_own_namespaces, wait
from ground.grafts import Graft, graft
from ground.network import WEB, internet

MEDIAN_LIMIT, WORST_PERCENT_LIMIT = 150, 2000  # µs


class Old:
    """A process with many descriptors that connects when told: "b" in a call that waits, "n" in one that does not."""

    def __init__(self, it: Graft, descriptors: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours

        def work() -> None:
            # What a fork of the bench brings with it is closed: this process has as many as asked for.
            channel_fd = os.dup2(theirs.detach(), 3)
            os.closerange(4, 65536)
            channel = socket.socket(fileno=channel_fd)
            numbers = range(descriptors - 4)
            kept = [socket.socket() if number % 2 else os.open("/dev/null", os.O_RDONLY) for number in numbers]
            assert len(kept) + 4 == descriptors
            while order := channel.recv(1):
                sock = socket.socket()
                if order == b"n":
                    sock.setblocking(False)
                    sock.connect_ex((WEB, 80))
                    sock.setblocking(True)
                    sock.send(b"x")
                else:
                    sock.connect((WEB, 80))
                    sock.send(b"x")
                channel.send(struct.pack("!I", sock.getsockname()[1]))
                channel.recv(1)
                sock.close()

        self.pid = it.program(work)
        theirs.close()

    def connect(self, order: bytes, meanwhile: Callable[[int], None] | None = None) -> None:
        self.channel.send(order)
        (port,) = struct.unpack("!I", self.channel.recv(4))
        if meanwhile is not None:
            meanwhile(port)
        self.channel.send(b"c")


def young(it: Graft) -> None:
    def work() -> None:
        os.closerange(3, 65536)
        with socket.create_connection((WEB, 80)) as sock:
            sock.send(b"x")

    assert wait(it.program(work)) == 0


def plain(pid: int, port: int) -> float:
    """Seconds of the plain way, for the socket with this port in the namespace of ``pid``."""
    begin = time.perf_counter()
    inode = None
    with open(f"/proc/{pid}/net/tcp") as file:
        for line in file:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}"):
                inode = fields[9]
                break
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{fd}") == f"socket:[{inode}]":
                    assert int(entry) == pid
                    return time.perf_counter() - begin
        except OSError:
            continue
    raise AssertionError("the plain way found nobody")


@in_own_namespaces
def measure(method: str, arguments: argparse.Namespace, samples: int) -> None:
    """Prints a line for ``method``, and with ``samples`` one for the plain way."""
    micros: list[int] = []
    slow: list[float] = []
    nobody = 0
    with internet() as inet, graft(attribution=method) as it, inet.listener(WEB, 80, backlog=512) as listener:

        def serve() -> None:
            listener.settimeout(None)
            while True:
                sock, _ = listener.accept()
                while sock.recv(4096):
                    pass
                sock.close()

        server = fork(serve)
        olds = [Old(it, arguments.descriptors) for _ in range(arguments.processes)]
        choice = random.Random(7)
        for number in range(arguments.flows):
            if number % 10 == 9:
                young(it)
            else:
                old = choice.choice(olds)
                sample = number % max(1, arguments.flows // samples) == 0 if samples else False
                look = (lambda port, pid=old.pid: slow.append(plain(pid, port))) if sample else None
                old.connect(b"n" if number % 2 else b"b", look)
            record = it.flow()
            micros.append(record["attribution"]["micros"])
            nobody += record["process"] is None
        for old in olds:
            old.channel.close()
            end(old.pid)
        end(server)
    print(line(method, list(micros)) + (f"   {nobody} without a process" if nobody else ""), flush=True)
    if slow:
        print(line("plain: /proc/net/tcp, then all", [seconds * 1e6 for seconds in slow]), flush=True)
        worst = sorted(micros)[len(micros) * 99 // 100]
        kept = statistics.median(micros) < MEDIAN_LIMIT and worst < WORST_PERCENT_LIMIT
        limits = f"{method}: median below {MEDIAN_LIMIT} µs and 99 % below {WORST_PERCENT_LIMIT} µs"
        print(f"{limits}: {'yes' if kept else 'NO'}", flush=True)


def line(name: str, micros: list[float]) -> str:
    ordered = sorted(micros)
    at = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{name:34}{statistics.median(ordered):>9.0f} µs{at:>10.0f} µs{ordered[-1]:>10.0f} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--descriptors", type=int, default=50)
    given = parser.parse_args()
    print(f"attribution, {given.processes} processes of {given.descriptors} descriptors, {given.flows} flows each")
    print(f"{'':34}{'median':>12}{'99 %':>13}{'worst':>13}", flush=True)
    measure("sock_diag", given, 40)
    measure("proc", given, 0)


if __name__ == "__main__":
    main()
