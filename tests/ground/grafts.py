"""A real forwarder process with its F and W; the test plays the supervisor and, through sockets born in W, the program.

The journal is a pipe, so a test can wait for a record instead of for a time.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from ground.child import fork
from ground.network import Network
from netns_graft.dialling import parse_upstreams
from netns_graft.forwarder.serve import Settings
from netns_graft.graft import forwarder_process
from netns_graft.journal import Journal
from netns_graft.policy import parse_quick_rules

WAIT = 10.0  # seconds for whatever should come at once
Record = dict[str, Any]


class Graft:
    """One forwarder at work. ``workload`` is W. Made by ``graft``."""

    def __init__(self, process: forwarder_process.ForwarderProcess, flows_fd: int) -> None:
        self._process = process
        self._flows_fd = flows_fd
        self._text = b""
        self.workload = Network(os.dup(process.workload_ns_fd))
        self.pid = process.pid
        self.ended = False
        process.started(os.getpid())

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """In W, held by this process."""
        return self.workload.socket(family, kind, protocol)

    @property
    def link(self) -> int:
        """The index of eth0, as the scope of a link-local address."""
        with self.workload.inside():
            return socket.if_nametoindex("eth0")

    def connect(self, address: str, port: int) -> socket.socket:
        """A TCP connection from W."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def refusal(self, address: str, port: int) -> tuple[int, float]:
        """(errno, seconds) of a connect() from W; errno 0 when it was let in."""
        with self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            begin = time.monotonic()
            try:
                sock.connect((address, port))
            except OSError as error:
                return error.errno or -1, time.monotonic() - begin
            return 0, time.monotonic() - begin

    def program(self, work: Callable[[], object]) -> int:
        """A fork of this process that is in W from its beginning, as the command is. Returns its pid."""

        def inside() -> None:
            self._process.channel.close()  # or it would keep the supervisor's end open when that is gone
            self.workload.enter()
            work()

        return fork(inside)

    def flow(self) -> Record:
        """The next record of the journal."""
        deadline = time.monotonic() + WAIT
        while b"\n" not in self._text:
            ready, _, _ = select.select([self._flows_fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no record came; so far: {self._text!r}"
            more = os.read(self._flows_fd, 65536)
            assert more, "the forwarder ended without another record"
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        record: Record = json.loads(line)
        return record

    def rest(self) -> list[Record]:
        """The records that nobody asked for yet, now that the forwarder has ended."""
        assert self.ended
        while more := os.read(self._flows_fd, 65536):
            self._text += more
        lines, self._text = self._text, b""
        return [json.loads(line) for line in lines.splitlines()]

    def finish(self) -> Any:
        """The workload has ended: the tally."""
        tally = self._process.finish()
        os.waitpid(self.pid, 0)
        self.ended = True
        assert tally is not None, "the forwarder gave no tally"
        return json.loads(tally)

    def kill(self) -> None:
        """SIGKILL for the forwarder, and wait until it is gone with all that it held."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.ended = True

    def hang_up(self) -> int:
        """As if the supervisor had been killed: the channel's end of file. The forwarder's exit status."""
        self._process.channel.close()
        self.ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        if not self.ended:
            self.finish()
        self._process.close()
        self.workload.close()
        os.close(self._flows_fd)


@contextmanager
def graft(
    *rules: tuple[str, str],
    default: str = "allow",
    proxies: Sequence[str] = (),
    dns: Literal["synthetic", "forward", "off"] = "off",
    hold: bool = True,
    loopback_resolvers: Sequence[str] = (),
    attribution: Literal["auto", "sock_diag", "proc"] = "auto",
) -> Iterator[Graft]:
    """A forwarder that dials from the namespace that we are in. ``rules`` as ("allow" | "deny", pattern)."""
    flows_fd, write_fd = os.pipe()
    journal = Journal(f"/proc/self/fd/{write_fd}")
    os.close(write_fd)
    settings = Settings(
        "test", parse_quick_rules(rules, default), parse_upstreams(list(proxies)), dns, journal, attribution=attribution
    )
    try:
        process = forwarder_process.start(
            settings, own_user_ns=False, hold=hold, loopback_resolvers=list(loopback_resolvers)
        )
    except BaseException:
        os.close(flows_fd)
        raise
    finally:
        journal.close()
        settings.upstreams.close()
    it = Graft(process, flows_fd)
    try:
        yield it
    except BaseException:
        if not it.ended:
            it.kill()
        raise
    finally:
        it.close()
