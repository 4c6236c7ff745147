"""The fork that becomes the forwarder: first its own user namespace, then F and W, then work. In ptrace mode: work.

Words on the channel (SOCK_SEQPACKET, one message each), after those of ``fork``, by which W's descriptor comes and,
when there is one, the user namespace's::

    supervisor → forwarder   "started PID"
    forwarder → supervisor   "noted", or what went wrong
    supervisor → forwarder   "finish"
    forwarder → supervisor   the tally, in pieces, then the end of file

The forwarder stays in the host's network namespace, for upstreams are dialled from there. It has a session of its
own, so that no key pressed in the terminal reaches it, and it is not dumpable: a workload of the same uid can end it
(and thereby its own network) but cannot attach to it or open its descriptors.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from netns_graft.errors import GraftError
from netns_graft.forwarder.life import NOTED, Supervised
from netns_graft.forwarder.packets import ByPackets
from netns_graft.forwarder.serve import Settings, prepare, serve
from netns_graft.forwarder.status import StatusSocket
from netns_graft.forwarder.way import Way
from netns_graft.graft.builder import BuildError, build_in_child
from netns_graft.graft.fork import MESSAGE, enter_user_ns, fork_until_ready, send_error, send_ready
from netns_graft.linux import syscalls


@dataclass(slots=True)
class ForwarderProcess:
    """The supervisor's side. Owns the channel and the namespace descriptors."""

    pid: int
    channel: socket.socket
    workload_ns_fd: int | None  # None in ptrace mode: the workload lives where we do
    user_ns_fd: int | None  # None as root, and in ptrace mode: no user namespace of our own

    def started(self, pid: int) -> None:
        """Wait until it is noted, or the first flow could come before its workload has a name. Raises GraftError."""
        try:
            self.channel.send(b"started %d" % pid)
            answer = self.channel.recv(MESSAGE)
        except OSError:
            return  # it has died, which SIGCHLD says too
        if answer not in (NOTED, b""):
            hint = "is strace or gdb around it? Else: sysctl kernel.yama.ptrace_scope=1 (as root)"
            raise GraftError(answer.decode(errors="replace"), hint=hint)

    def finish(self) -> str | None:
        """Ask for the end and wait for it, at most 10 seconds. The tally as JSON, or None if it had died."""
        self.channel.settimeout(10.0)
        parts: list[bytes] = []
        try:
            self.channel.send(b"finish")
            while part := self.channel.recv(MESSAGE):
                parts.append(part)
        except OSError:
            self.kill()
        return b"".join(parts).decode() if parts else None

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        self.channel.close()
        for fd in (self.workload_ns_fd, self.user_ns_fd):
            if fd is not None:
                os.close(fd)


def start_tracing(settings: Settings, *, ignore_local: bool, status_dir: str | None = None) -> ForwarderProcess:
    """Fork a forwarder that will trace the workload (mode ptrace). Raises GraftError; then nothing is left of it."""

    def become(channel: socket.socket) -> None:
        from netns_graft.forwarder.calls import ByCalls

        def ready() -> Way:
            # Before there is any other thread (a proxy's name is looked up in one): the kernel gives a process's
            # signal to whichever thread has it unblocked, and the tracer's descriptor would hear nothing.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            way = ByCalls(ignore_local=ignore_local, own=status_dir and os.path.dirname(status_dir))
            try:
                # Every stop of a program waits for us, and its processor with it.
                syscalls.set_time_slice(_SLICE)
            except OSError:
                pass  # an older kernel: as it comes
            _check_and_tell(channel, settings, [])
            return way

        _become_forwarder(channel, settings, status_dir, ready)

    pid, channel, _fds = fork_until_ready("the forwarder", become, own_user_ns=False)
    return ForwarderProcess(pid, channel, None, None)


def start(
    settings: Settings,
    *,
    own_user_ns: bool,
    hold: bool,
    loopback_resolvers: Sequence[str],
    status_dir: str | None = None,
) -> ForwarderProcess:
    """Fork a forwarder and wait until its namespaces stand. Raises GraftError; then nothing is left of it."""

    def become(channel: socket.socket) -> None:
        def ready() -> Way:
            user_ns_fd = enter_user_ns(channel) if own_user_ns else None
            try:
                wiring = build_in_child(
                    hold=hold,
                    dns=settings.dns != "off",
                    loopback_resolvers=loopback_resolvers,
                    meanwhile=partial(prepare, settings),
                )
            except BuildError as error:
                raise GraftError(f"cannot build the network namespaces: {error}") from None
            fds = [wiring.workload_ns_fd] + ([user_ns_fd] if user_ns_fd is not None else [])
            _check_and_tell(channel, settings, fds)
            if user_ns_fd is not None:
                os.close(user_ns_fd)
            return ByPackets(wiring)

        _become_forwarder(channel, settings, status_dir, ready)

    pid, channel, fds = fork_until_ready("the forwarder", become, own_user_ns=own_user_ns)
    return ForwarderProcess(pid, channel, fds[0], fds[1] if own_user_ns else None)


def _check_and_tell(channel: socket.socket, settings: Settings, fds: Sequence[int]) -> None:
    """The last look before the command may start."""
    syscalls.set_not_dumpable()
    asyncio.run(settings.upstreams.check())
    send_ready(channel, fds)


def _become_forwarder(
    channel: socket.socket, settings: Settings, status_dir: str | None, ready: Callable[[], Way]
) -> None:
    """``ready`` makes the way and tells the supervisor. Never returns."""
    status = 0
    try:
        detach()
        serve(ready(), settings, Supervised(settings.kind, channel), partial(_status_socket, status_dir))
    except GraftError as error:
        send_error(channel, error)
        status = error.status
    except BaseException as error:  # noqa: BLE001  # the end of the process; one line says why
        status = 125
        if os.environ.get("NETNS_GRAFT_DEBUG"):
            traceback.print_exc()
        print(f"netns-graft: error: internal error in the forwarder: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _status_socket(directory: str | None, name: str) -> StatusSocket | None:
    """Without one, nobody can ask; the command runs all the same."""
    if directory is None:
        return None
    try:
        return StatusSocket.open(f"{directory}/{name}.sock")
    except OSError:
        return None


FORWARDER = "graft-forwarder"  # in ps
_SLICE = 0.0001  # seconds; the shortest that there is
_DESCRIPTORS = 64  # fewer do not carry a single flow: sockets of F and W, the loop, and the flow itself


def detach() -> None:
    """This process is a forwarder now. Nothing of the caller's terminal or pipes stays with us but stderr, for errors
    and ``--flows -``.
    """
    os.setsid()
    syscalls.set_process_name(FORWARDER)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null_fd, 0)
    os.dup2(null_fd, 1)
    os.close(null_fd)
    os.chdir("/")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _DESCRIPTORS:
        raise GraftError(
            f"the forwarder may open {hard} descriptors only, and needs {_DESCRIPTORS}",
            hint=f"ulimit -n {_DESCRIPTORS} or more",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
