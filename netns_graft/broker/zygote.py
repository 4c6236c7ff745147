"""The zygote: holds the hook's socket and forks a process for each question. Single-threaded, everything imported.

A fork shares the memory of all that was imported, and takes milliseconds where a start takes half a second. For that
to be safe this process runs no thread and no event loop, and the child closes what is the broker's before it reads a
byte.

It leaves after ``idle`` seconds without a question, unless a forwarder of its own lives: then the next container is
likely, and the memory is shared anyway. ``crun run`` in the foreground adopts whatever its hooks leave behind and
waits for its end, so a broker that was started by one leaves with its last forwarder. What it leaves behind lives on:
forwarders are sessions of their own.

Whoever clears a runtime directory (a cleaner of /tmp, an eager user) takes the sockets by which hooks find us. They
are missed at once and made anew. Where the lock has gone too, another broker may be there or come: then we leave, and
remove nothing that is not our own.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from netns_graft.broker.container import Answering, keep_log_short, tell
from netns_graft.broker.rehearsal import rehearse
from netns_graft.errors import GraftError
from netns_graft.graft.builder import SpareBuilder
from netns_graft.graft.forwarder_process import detach
from netns_graft.linux import control_sockets, places, syscalls, watch, workload

IDLE_SECONDS = 600.0
_FRONT_PAUSE = 1.0  # seconds before a front that died is started again
_FRONT_DELAY = 0.3  # seconds until the first: it loads for 200 ms, and a container waits that had us started
_SPARE_PAUSE = 0.3  # seconds until the next spare is made: a container that starts needs the processors more
_BURST = 64
_UNWATCHED_PAUSE = 2.0  # seconds between looks at our own files where inotify is not to be had
_HOOK, _API = "hook.sock", "api.sock"


class Broker:
    """``runtime``: the runtime directory of the host's user. Owns its sockets and the lock."""

    def __init__(self, runtime: str) -> None:
        self.runtime = places.private_directory(runtime)
        self.place = places.private_directory(f"{runtime}/broker-{workload.own_user_namespace()}")
        self._children: set[int] = set()
        self._front: int | None = None
        self._front_due = 0.0
        self._spare: tuple[int, socket.socket] | None = None
        self._spare_due = 0.0
        self._has_power = workload.has_power()  # else each graft lives in a user namespace of its container's own
        self._stop = False
        self._socks: dict[str, tuple[socket.socket, int]] = {}  # owned; by name, with the file's inode
        self._ends: tuple[socket.socket, ...] = ()  # of the channel by which the front says that it is used
        self._lock_fd = -1
        self._watch_fd: int | None = None
        self._wake_fds: tuple[int, ...] = ()

    def claim(self) -> bool:
        """Become the broker of this user namespace: lock and sockets. False when there is one already. OSError."""
        fd = os.open(f"{self.place}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        try:
            self._watch_fd = watch.losses_of(self.place)
        except OSError as error:
            tell(f"{error.filename}: {error.strerror}; looking after our sockets every {_UNWATCHED_PAUSE:.0f} s")
        for name in (_HOOK, _API):
            self._listen(name)
        return True

    def _listen(self, name: str) -> None:
        path = f"{self.place}/{name}"
        try:
            os.unlink(path)  # the lock is ours, so whoever made it is dead
        except FileNotFoundError:
            pass
        sock = control_sockets.listen(path)
        sock.setblocking(False)
        self._socks[name] = (sock, os.lstat(path).st_ino)

    def _look_after_files(self) -> None:
        """Make anew what was taken from us. Without the lock we are the broker no more."""
        if not _is_at(f"{self.place}/lock", os.fstat(self._lock_fd).st_ino):
            tell("our lock was removed: leaving")
            self._stop = True
            return
        for name, (sock, inode) in list(self._socks.items()):
            if _is_at(f"{self.place}/{name}", inode):
                continue
            tell(f"{name} was removed: listening again")
            if name == _HOOK:
                self._take_hooks()  # whoever had found it
            try:
                self._listen(name)
            except OSError as error:
                tell(f"cannot: {error.strerror}; leaving")
                self._stop = True
                return
            sock.close()
            if name == _API and self._front is not None:
                os.kill(self._front, signal.SIGKILL)  # its successor gets the new one

    def run(self, front: Callable[[socket.socket, str, socket.socket], None], idle: float = IDLE_SECONDS) -> None:
        """Answer hooks until SIGTERM, SIGINT or idleness. ``front`` runs in a child of its own; it is given the API's
        socket, the runtime directory, and a socket to write a byte to whenever it is used.
        """
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        used_sock, using_sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        used_sock.setblocking(False)
        using_sock.setblocking(False)
        self._wake_fds = (wake_read, wake_write)
        self._ends = (used_sock, using_sock)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # some runtimes start hooks with all of them blocked
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, every page
        poll = select.poll()
        for fd in (self._hook_fd, wake_read, used_sock.fileno(), self._watch_fd):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        began = last = time.monotonic()
        self._front_due = began + _FRONT_DELAY
        while not self._stop:
            now = time.monotonic()
            if self._front is None and now >= self._front_due:
                api_sock = self._socks[_API][0]
                self._front = self._fork(partial(front, api_sock, self.runtime, using_sock), but=_API)
            if self._spare is None and self._has_power and now >= self._spare_due:
                self._make_spare()
            if self._children:
                last = now
            elif last > began and workload.is_awaited_by("crun"):
                break
            left = last + idle - now
            if left <= 0:
                break
            if self._front is None:
                left = min(left, max(0.0, self._front_due - now))
            if self._spare is None and self._has_power:
                left = min(left, max(0.0, self._spare_due - now))
            if self._watch_fd is None:
                left = min(left, _UNWATCHED_PAUSE)
            hook_fd = self._hook_fd
            for fd, _ in poll.poll(left * 1000):
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif fd == self._watch_fd:
                    watch.read_empty(fd)
                else:
                    last = time.monotonic()
                    if fd == used_sock.fileno():
                        used_sock.recv(4096)
                    else:
                        self._take_hooks()
            self._look_after_files()
            keep_log_short()
            if self._hook_fd != hook_fd:
                poll.unregister(hook_fd)
                poll.register(self._hook_fd, select.POLLIN)
        self._leave()

    @property
    def _hook_fd(self) -> int:
        return self._socks[_HOOK][0].fileno()

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stop = True

    def _take_hooks(self) -> None:
        for _ in range(_BURST):
            try:
                sock, _address = self._socks[_HOOK][0].accept()
            except OSError:
                return
            try:
                if not self._hand_to_spare(sock):
                    self._children.add(self._fork(partial(_answer, sock, self.runtime)))
            except OSError as error:
                tell(f"cannot fork: {error.strerror}")
                sock.send(f"refused the broker cannot fork: {error.strerror}\n".encode())
            sock.close()

    def _hand_to_spare(self, sock: socket.socket) -> bool:
        if self._spare is None:
            return False
        (pid, channel), self._spare = self._spare, None
        self._spare_due = time.monotonic() + _SPARE_PAUSE
        with channel:
            try:
                socket.send_fds(channel, [b"h"], [sock.fileno()])
            except OSError:
                return False  # it has died in the meantime
        self._children.add(pid)
        return True

    def _make_spare(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._spare = (self._fork(partial(_be_spare, theirs, ours, self.runtime)), ours)
        except OSError as error:
            tell(f"cannot fork a spare: {error.strerror}")
            ours.close()
            self._spare_due = time.monotonic() + 60.0
        finally:
            theirs.close()

    def _fork(self, work: Callable[[], None], *, but: str | None = None) -> int:
        """A child that does ``work`` and has nothing that is the broker's, ``but`` the socket of this name and, with
        it, the way to say that it is used.
        """
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            if but is not None:
                syscalls.set_parent_death_signal(signal.SIGKILL)
            for name, (sock, _inode) in self._socks.items():
                if name != but:
                    sock.close()
            used_sock, using_sock = self._ends
            used_sock.close()
            if but is None:
                using_sock.close()
            if self._spare is not None:
                self._spare[1].close()
            for fd in (self._lock_fd, self._watch_fd, *self._wake_fds):
                if fd is not None:
                    os.close(fd)
            work()
        except BaseException as error:  # noqa: BLE001  # nothing of the parent's stack may run here
            tell(f"internal error: {type(error).__name__}: {error}")
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.discard(pid)
            if self._spare is not None and pid == self._spare[0]:
                self._spare[1].close()
                self._spare, self._spare_due = None, time.monotonic() + 60.0
            if pid == self._front:
                self._front = None
                self._front_due = time.monotonic() + _FRONT_PAUSE

    def _leave(self) -> None:
        """First nobody finds us any more, then whoever had found us is answered."""
        for name, (_sock, inode) in self._socks.items():
            control_sockets.remove(f"{self.place}/{name}", inode)
        self._take_hooks()
        if self._spare is not None:
            self._spare[1].close()
        if self._front is not None:
            os.kill(self._front, signal.SIGKILL)
            os.waitpid(self._front, 0)
        for sock in (*(sock for sock, _inode in self._socks.values()), *self._ends):
            sock.close()
        if self._watch_fd is not None:
            os.close(self._watch_fd)
        os.close(self._lock_fd)


def _is_at(path: str, inode: int) -> bool:
    try:
        return os.lstat(path).st_ino == inode
    except OSError:
        return False


def _answer(sock: socket.socket, runtime: str) -> None:
    detach()
    os._exit(Answering(sock, runtime).run())


def _be_spare(channel: socket.socket, brokers_end: socket.socket, runtime: str) -> None:
    """Make in advance what every graft needs, then wait for a hook; the broker's end ends us."""
    brokers_end.close()
    detach()
    spare = SpareBuilder(hold=True, dns=True)
    try:
        rehearse()
    except OSError as error:
        tell(f"a spare cannot rehearse: {error.strerror}")
    data, fds, _flags, _address = socket.recv_fds(channel, 16, 1)
    channel.close()
    if not data:
        spare.close()
        os._exit(0)
    os._exit(Answering(socket.socket(fileno=fds[0]), runtime, spare).run())


def preload() -> None:
    """Import what a forwarder will need, so that a fork has it."""
    import encodings.idna  # noqa: F401

    import netns_graft.dns.answering
    import netns_graft.dns.resolvers
    import netns_graft.linux.wiring  # noqa: F401


def serve(runtime: str, idle: float) -> int:
    """``netns-graft serve``: the exit status. GraftError when it cannot begin."""
    try:
        broker = Broker(runtime)
        if not broker.claim():
            tell("another broker is there already")
            return 0
    except OSError as error:
        raise GraftError(f"cannot begin in {runtime}: {error.filename or ''} {error.strerror}") from None
    preload()
    from netns_graft.broker.front import front

    broker.run(front, idle)
    return 0
