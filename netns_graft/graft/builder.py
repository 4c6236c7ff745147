"""The short life of the process that makes F and W: who has entered them may be unable to come back."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable, Sequence

from netns_graft.linux.cable import Wiring

_MESSAGE = 65536


class BuildError(Exception):
    """The builder's last words."""


def build_in_child(
    *,
    hold: bool,
    dns: bool,
    loopback_resolvers: Sequence[str],
    meanwhile: Callable[[], None],
    workload_ns_fd: int | None = None,
) -> Wiring:
    """Fork, build F and W there, take over the sockets. Raises BuildError with what the kernel refused.

    ``meanwhile`` runs here while the child works: there is a second core, and imports to do. ``workload_ns_fd``: a W
    that exists (borrowed).
    """

    def build() -> Wiring:
        from netns_graft.linux import wiring as cables

        return cables.build(hold=hold, dns=dns, loopback_resolvers=loopback_resolvers, workload_ns_fd=workload_ns_fd)

    with _Builder(lambda _channel: build()) as builder:
        meanwhile()
        return builder.result()


class SpareBuilder:
    """A child that has made F in advance, and waits for a W to connect it to. ``close`` it, used or not."""

    def __init__(self, *, hold: bool, dns: bool) -> None:
        self.hold = hold
        self.dns = dns
        self._builder = _Builder(self._build)

    def _build(self, channel: socket.socket) -> Wiring | None:
        from netns_graft.linux import wiring as cables

        spare = cables.build_spare(hold=self.hold, dns=self.dns)
        data, fds, _flags, _address = socket.recv_fds(channel, _MESSAGE, 1)
        return cables.connect_spare(spare, fds[0], json.loads(data)) if data else None

    def connect(
        self, workload_ns_fd: int, loopback_resolvers: Sequence[str], meanwhile: Callable[[], None]
    ) -> Wiring:
        """Wire the W (borrowed) and take over the sockets. Once. Raises BuildError. ``meanwhile`` as above."""
        self._builder.send_fd(json.dumps(list(loopback_resolvers)).encode(), workload_ns_fd)
        meanwhile()
        return self._builder.result()

    def close(self) -> None:
        self._builder.close()


class _Builder:
    """The child and the channel to it. ``work`` runs in the child and gives what is to be handed over, or None."""

    def __init__(self, work: Callable[[socket.socket], Wiring | None]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._channel.close()
                status = _report(theirs, work)
            finally:
                os._exit(status)  # nothing of the parent's stack may run here, whatever was raised
        theirs.close()

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def send_fd(self, data: bytes, fd: int) -> None:
        try:
            socket.send_fds(self._channel, [data], [fd])
        except OSError:
            pass  # it has ended: its last words are to be read

    def result(self) -> Wiring:
        try:
            wiring = Wiring.receive(self._channel)
        except (ValueError, KeyError):
            wiring = None  # not a wiring but words
        if wiring is None:
            reason = self._channel.recv(_MESSAGE).decode(errors="replace")
            raise BuildError(reason or "the builder ended without a word")
        return wiring

    def close(self) -> None:
        """Its end of the channel ends it, if it has not ended by itself."""
        self._channel.close()
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


def _report(channel: socket.socket, work: Callable[[socket.socket], Wiring | None]) -> int:
    try:
        wiring = work(channel)
        if wiring is not None:
            wiring.send(channel)
    except Exception as error:  # noqa: BLE001  # pyroute2 raises many kinds; all of them end here, in words
        if os.environ.get("NETNS_GRAFT_DEBUG"):
            traceback.print_exc()
        channel.send(b"")
        channel.send(str(error).encode(errors="replace") or type(error).__name__.encode())
        return 1
    return 0
