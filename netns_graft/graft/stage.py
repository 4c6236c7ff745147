"""A stage: a host and an Internet of its own, for a demonstration that leaves this machine alone.

::

    caller ──fork──► stage process: own user namespace (unless root), network namespaces host and inet, own files;
       │                            then the servers of ``stage_servers``, until the caller is gone
       └────fork──► one act at a time, inside the stage's namespaces, in the network of its host

PIDs are the machine's: there is no PID namespace. What the stage lays over /etc/hosts, /etc/nsswitch.conf and
/etc/resolv.conf is seen on the stage only. Where there is no /etc/resolv.conf to lay anything over, libc asks
127.0.0.1, and that is where the stage's name server listens.

Nothing stays behind, however it ends: an act ends with its caller (parent death signal), a graft in it with the act,
the stage process with the last descriptor of its channel; namespaces live by these processes alone. Every process of
the stage inherits the write end of ``_alive``, so that its end of file means that all of them are gone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from netns_graft.errors import GraftError
from netns_graft.graft import command, fork, stage_servers, stage_sites
from netns_graft.graft.stage_servers import StageSockets
from netns_graft.linux import syscalls

_FILES = {
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/resolv.conf": "nameserver 127.0.0.1\n",
}
_DNS_PORT = 53
_FAREWELL = 5.0  # seconds for what was killed to be gone


class Act(NamedTuple):
    """What an act gave: its exit status, and what it and its children wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Stage:
    """Stands until ``close``. Owns the process, its channel and the namespaces' descriptors."""

    def __init__(self, log_fd: int) -> None:
        """Build it. ``log_fd`` (borrowed) gets the servers' log. Raises GraftError; then nothing is left of it."""
        self._alive, self._alive_write = os.pipe()
        own_user_ns = not fork.is_real_root()
        try:
            self._ready = fork.fork_until_ready(
                "the stage",
                lambda channel: _become_stage(channel, log_fd, own_user_ns),
                own_user_ns=own_user_ns,
            )
        except BaseException:
            self._await_the_end()
            raise
        self._act: int | None = None

    def perform(self, act: Callable[[], int]) -> Act:
        """Run ``act`` in a fork on the stage's host, in a session of its own and with no terminal.

        Its exit status is what ``act`` returns. What it prints on stdout and stderr is kept.
        """
        sys.stdout.flush()  # or the fork would print it again
        stderr_fd = os.memfd_create("stderr")
        stdout_fd, write_fd = os.pipe()
        caller = os.getpid()
        self._act = fork.fork_uninterrupted()
        if self._act == 0:
            self._become_act(act, caller, write_fd, stderr_fd)
        os.close(write_fd)
        try:
            stdout = b"".join(iter(lambda: os.read(stdout_fd, 65536), b""))
            status = os.waitstatus_to_exitcode(os.waitpid(self._act, 0)[1])
            self._act = None
            return Act(status if status >= 0 else 128 - status, stdout, read_all(stderr_fd))
        finally:
            os.close(stdout_fd)
            os.close(stderr_fd)

    def close(self) -> bool:
        """End whatever still runs, and wait until it has ended: is it all gone?"""
        pids = [self._ready.pid] if self._act is None else [self._act, self._ready.pid]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # reaped already, and interrupted before we could note it
        self._ready.channel.close()
        for fd in self._ready.fds:
            os.close(fd)
        return self._await_the_end()

    def _await_the_end(self) -> bool:
        os.close(self._alive_write)
        ended, _, _ = select.select([self._alive], [], [], _FAREWELL)
        os.close(self._alive)
        return bool(ended)

    def _become_act(self, act: Callable[[], int], caller: int, stdout_fd: int, stderr_fd: int) -> None:
        """Never returns."""
        status = 125
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.path[:] = [os.path.abspath(path) for path in sys.path]  # a mount namespace is entered at "/"
            host_ns_fd, mount_ns_fd, *user_ns_fd = self._ready.fds
            if user_ns_fd:
                syscalls.setns(user_ns_fd[0], syscalls.CLONE_NEWUSER)
            syscalls.setns(mount_ns_fd, syscalls.CLONE_NEWNS)
            syscalls.setns(host_ns_fd, syscalls.CLONE_NEWNET)
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != caller:
                os._exit(125)  # it ended before the signal was set
            _standard_fds(stdout_fd, stderr_fd)
            status = act()
        except BaseException:  # noqa: BLE001  # the end of the process; the caller shows what is written here
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            try:
                sys.stdout.flush()
            finally:
                os._exit(status)


@contextmanager
def raised(log_fd: int) -> Iterator[Stage]:
    """A stage for the time of the block. Raises GraftError, after the block too: when something of it is left."""
    stage = Stage(log_fd)
    try:
        yield stage
    except BaseException:
        stage.close()
        raise
    if not stage.close():
        raise GraftError(f"something on the stage did not end within {_FAREWELL:.0f} seconds")


def run_program(argv: Sequence[str]) -> int:
    """Run a program and wait for it. Its exit status, 128+N when signal N ended it. Part of an act."""
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.set_parent_death_signal(signal.SIGKILL)
            os.execv(argv[0], list(argv))
        finally:
            os._exit(126)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def read_all(fd: int) -> bytes:
    """All of a regular file or memfd, wherever its position is."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _standard_fds(stdout_fd: int, stderr_fd: int) -> None:
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd, number in ((null_fd, 0), (stdout_fd, 1), (stderr_fd, 2)):
        os.dup2(fd, number)
    os.close(null_fd)


def _become_stage(channel: socket.socket, log_fd: int, own_user_ns: bool) -> None:
    """Never returns."""
    status = 0
    try:
        os.setsid()
        syscalls.set_process_name("graft-stage")
        null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        _standard_fds(null_fd, null_fd)
        user_ns_fds = [fork.enter_user_ns(channel)] if own_user_ns else []
        try:
            host_ns_fd, inet_ns_fd = _new_network(), _new_network()
            command.own_files(_FILES)
            mount_ns_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            _wire_in_child(host_ns_fd, inet_ns_fd)
            sockets = _open_sockets(host_ns_fd, inet_ns_fd)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise GraftError(f"cannot build the stage: {error.strerror}{where}", hint=_hint(error.errno)) from None
        namespaces = [host_ns_fd, mount_ns_fd, *user_ns_fds]
        fork.send_ready(channel, namespaces)
        for fd in [inet_ns_fd, *namespaces]:
            os.close(fd)
        stage_servers.serve(sockets, log_fd, channel)
    except GraftError as error:
        fork.send_error(channel, error)
        status = error.status
    except BaseException as error:  # noqa: BLE001  # the end of the process; one line says why
        fork.send_error(channel, GraftError(f"internal error on the stage: {error!r}"))
        status = 125
    finally:
        os._exit(status)


def _hint(number: int | None) -> str | None:
    if number == errno.ENOSPC:
        return "namespaces are used up: see sysctl user.max_net_namespaces and user.max_mnt_namespaces"
    if number == errno.EPERM:
        return "a container or a security module forbids namespaces or mounts in them"
    return None


def _new_network() -> int:
    """Into a new network namespace; its descriptor."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _wire_in_child(host_ns_fd: int, inet_ns_fd: int) -> None:
    """In a process of its own: pyroute2's memory and whatever it leaves in a process go with that."""
    words_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            from netns_graft.linux import stage_wiring

            stage_wiring.wire(host_ns_fd, inet_ns_fd, stage_sites.INTERNET)
        except BaseException as error:  # noqa: BLE001  # pyroute2 raises many kinds; all of them end here, in words
            os.write(write_fd, (str(error) or type(error).__name__).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    words = os.read(words_fd, 4096)
    os.close(words_fd)
    os.waitpid(pid, 0)
    if words:
        raise GraftError(f"cannot build the stage: {words.decode(errors='replace')}")


def _open_sockets(host_ns_fd: int, inet_ns_fd: int) -> StageSockets:
    """Each born where it serves. Leaves the process in the Internet's namespace."""
    sites = stage_sites
    syscalls.setns(host_ns_fd, syscalls.CLONE_NEWNET)
    names = _bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1", _DNS_PORT)
    web = [_bound(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", sites.PRIVATE_PORT)]
    syscalls.setns(inet_ns_fd, syscalls.CLONE_NEWNET)
    echo = _bound(socket.AF_INET, socket.SOCK_DGRAM, sites.WEB_V4, sites.ECHO_PORT)
    web.append(_bound(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", sites.WEB_PORT))
    try:
        web.append(_bound(socket.AF_INET6, socket.SOCK_STREAM, "::", sites.WEB_PORT))
    except OSError:
        pass  # no IPv6 here
    return StageSockets(web, echo, names)


def _bound(family: socket.AddressFamily, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    except OSError:
        sock.close()
        raise
    return sock
