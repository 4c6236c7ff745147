"""The fork that becomes the command: into the user namespace, into W, its own resolv.conf, then exec.

What changes for the command is the network and /etc/resolv.conf, nothing else: uid, gid, groups (unless root asks for
another user), directory, terminal, environment and descriptors 0 to 2 are the caller's. Descriptors from 3 up are
closed, for an inherited socket of the host would be a way out.

In mode ptrace not even the network changes: the forwarder traces us from before exec on, and a seccomp filter stops
us at network calls.

Name services that answer over a Unix socket (systemd-resolved, nscd, avahi) would resolve names on the host, past
the forwarder: an empty file is mounted over each, so that libc falls back to DNS.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from netns_graft.errors import GraftError
from netns_graft.linux import places, seccomp, syscalls

_RESOLV_CONF = "/etc/resolv.conf"
_STAGE = "/proc"  # where our tmpfs is mounted for a moment; any directory that surely exists will do
_REPORT_FD = 3
ENTERED = b"."
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(slots=True, frozen=True)
class Signals:
    """What the caller's signal mask and SIGINT were before Python and the supervisor changed them."""

    mask: frozenset[int]
    interrupt: signal.Handlers

    @classmethod
    def as_inherited(cls) -> Signals:
        # Python leaves an ignored SIGINT (a job of a script, after "&") alone and otherwise installs a handler.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        mask = frozenset(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return cls(mask, signal.SIG_IGN if ignored else signal.SIG_DFL)


class Surroundings(Protocol):
    """What is around the command when it runs."""

    def enter(self) -> None:
        """Before the forwarder knows of us. OSError with what failed as its file name."""

    def arm(self) -> None:
        """Once the forwarder is ready for our flows, and before we are anybody else. OSError."""


@dataclass(slots=True)
class Graft:
    """A network of its own. Descriptors are borrowed. ``resolv_conf`` None: the host's stays."""

    workload_ns_fd: int
    user_ns_fd: int | None
    resolv_conf: str | None

    def enter(self) -> None:
        if self.user_ns_fd is not None:
            syscalls.setns(self.user_ns_fd, syscalls.CLONE_NEWUSER)
        syscalls.setns(self.workload_ns_fd, syscalls.CLONE_NEWNET)
        own_files({} if self.resolv_conf is None else {_RESOLV_CONF: self.resolv_conf})
        if self.user_ns_fd is not None:
            # exec of a program that is not root's drops what we hold in the namespace; this is for good measure.
            syscalls.clear_ambient_capabilities()

    def arm(self) -> None:
        """Nothing: there is no way around the only route."""


@dataclass(slots=True)
class Traced:
    """The namespaces we are in; the forwarder stops us at network calls. ``strict``: see ``seccomp.program``."""

    tracer_pid: int
    strict: bool

    def enter(self) -> None:
        # Yama lets a process be traced by its parents and by whom it names.
        syscalls.set_ptracer(self.tracer_pid)

    def arm(self) -> None:
        program = seccomp.program(strict=self.strict)
        try:
            seccomp.install(program, no_new_privs=False)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            # Without CAP_SYS_ADMIN the kernel takes a filter only from who can gain no privileges any more.
            seccomp.install(program, no_new_privs=True)


@dataclass(slots=True, frozen=True)
class Login:
    """Whom the command runs as, when root asks for another user."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def of(cls, name: str) -> Login:
        """GraftError: nobody has that name."""
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise GraftError(f"--user: there is no user {name!r}", hint="getent passwd lists them") from None
        return cls(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The caller's, but for who and where one is at home."""
        return {**environment, "HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    def become(self) -> None:
        os.initgroups(self.name, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


@dataclass(slots=True)
class Command:
    """What to run, and as whom (None: the caller)."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    login: Login | None
    signals: Signals


def become(command: Command, surroundings: Surroundings, go_fd: int, report_fd: int) -> None:
    """Turn this process (a fresh fork) into the command. Never returns.

    Writes ``ENTERED`` to ``report_fd`` (close-on-exec) and waits for a "g" on ``go_fd``. What goes wrong is written
    to ``report_fd`` as "STATUS text"; an exec that succeeds closes it without a word.
    """
    supervisor = os.getppid()
    try:
        try:
            surroundings.enter()
            os.write(report_fd, ENTERED)
            if os.read(go_fd, 1) != b"g":
                os._exit(125)
            surroundings.arm()
        except OSError as error:
            _report(report_fd, 125, f"cannot enter the graft: {error.strerror} ({error.filename})")
        try:
            if command.login is not None:
                command.login.become()
        except OSError as error:
            _report(report_fd, 125, f"cannot become the user {command.login}: {error.strerror}")
        # From here on we end with the supervisor, however it ends. After the change of user, which clears it.
        syscalls.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(125)
        _inherited_signals(command.signals)
        _close_from_3(report_fd)
        _exec(command.argv, command.environment)
    finally:
        os._exit(125)


def own_files(files: Mapping[str, str]) -> None:
    """Into a mount namespace of our own, where ``files`` (path → text) lie over what is there, read-only; and an empty
    file over each name service's socket. What does not exist is not covered. Nothing is written to disk.

    The files live in a tmpfs that has no place of its own: it is mounted over /proc while they are bound to where
    they belong, and stays alive through them.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # What is mounted on the host later still appears here; what we mount does not appear there.
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    covers = [(os.path.realpath(path), text) for path, text in files.items() if os.path.exists(path)]
    covers += [(path, "") for path in places.NAME_SERVICES if _is_socket(path)]
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("netns-graft", _STAGE, "tmpfs", flags, "size=64k,mode=0755")
    try:
        for number, (path, text) in enumerate(covers):
            cover = f"{_STAGE}/{number}"
            _write(cover, text)
            syscalls.mount(cover, path, "", syscalls.MS_BIND)
            # Read-only, or the command could point its own resolver elsewhere and wonder why it is closed.
            syscalls.mount("none", path, "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | flags)
    finally:
        syscalls.umount(_STAGE, syscalls.MNT_DETACH)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _inherited_signals(signals: Signals) -> None:
    """Undo what Python and the supervisor changed, so that the command sees what the shell gave us."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signals.interrupt)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask)


def _close_from_3(keep_fd: int) -> None:
    if keep_fd != _REPORT_FD:
        os.dup2(keep_fd, _REPORT_FD, inheritable=False)
    os.closerange(_REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _exec(command: Sequence[str], environment: Mapping[str, str]) -> None:
    name = command[0]
    places = [name] if "/" in name else [
        os.path.join(directory or ".", name) for directory in environment.get("PATH", _DEFAULT_PATH).split(":")
    ]
    failure = errno.ENOENT
    for path in places:
        try:
            os.execve(path, list(command), dict(environment))
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # A script without "#!": what execvp(3) and every shell do.
                try:
                    os.execve("/bin/sh", ["sh", path, *command[1:]], dict(environment))
                except OSError as second:
                    error = second
            # EACCES is also what a directory of PATH gives that we may not search: nothing was found there.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and os.path.exists(path):
                failure = error.errno or errno.EACCES
    found = failure not in (errno.ENOENT, errno.ENOTDIR)
    reason = os.strerror(failure).lower() if found else "command not found" if "/" not in name else "no such file"
    _report(_REPORT_FD, 126 if found else 127, f"{name}: {reason}")


def _report(report_fd: int, status: int, text: str) -> None:
    os.write(report_fd, f"{status} {text}".encode(errors="surrogateescape"))
    os._exit(status)

