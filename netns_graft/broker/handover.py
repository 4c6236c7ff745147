"""W handed over from inside, where it cannot be opened from outside.

crun, called by an ordinary user without an engine, hides its container's process until the program runs: it is not
dumpable, and belongs to a user namespace in which we have no power, so ``/proc/PID/ns/net`` is closed to us. But its
``createContainer`` hooks run inside the container's namespaces, after createRuntime's and before the program. So the
first hook is answered without a graft, the second one brings W's descriptor and waits for it; the container does not
start before that.

The second hook comes from another network namespace, as no asker may. It is known by its ancestry: the container's
process, which the first hook named from the host's network and whose pidfd we hold, is above it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import time

from netns_graft.errors import GraftError
from netns_graft.linux import control_sockets, places, proc, workload
from netns_graft.linux.workload import Workload

STAGE = "createContainer"
_SECONDS = 20.0
_QUESTION = 64
_GENERATIONS = 4  # from a hook up to the process that runs it: crun forks twice
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


def socket_path(runtime: str, container_id: str) -> str:
    """Where the second hook finds us; hooks/oci_hook.py makes the same name."""
    name = hashlib.sha256(container_id.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{places.private_directory(f'{runtime}/handover')}/{name}.sock"


class Handover:
    """Waits for the second hook of one container. Owns the socket, its file and the process's descriptor."""

    def __init__(self, runtime: str, container_id: str, pid: int) -> None:
        self._path = socket_path(runtime, container_id)
        self._pid = pid
        self._pid_fd = os.pidfd_open(pid)
        try:
            control_sockets.remove_stale(self._path)
            self._sock = control_sockets.listen(self._path)
        except BaseException:
            os.close(self._pid_fd)
            raise
        self._inode = os.lstat(self._path).st_ino

    def __enter__(self) -> Handover:
        return self

    def __exit__(self, *_error: object) -> None:
        control_sockets.remove(self._path, self._inode)
        self._sock.close()
        if self._pid_fd >= 0:
            os.close(self._pid_fd)

    def receive(self) -> tuple[socket.socket, Workload]:
        """The second hook, who waits for an answer, and its W; the caller's. GraftError when none comes."""
        deadline = time.monotonic() + _SECONDS
        while (left := deadline - time.monotonic()) > 0 and not workload.has_ended(self._pid_fd):
            ready, _, _ = select.select([self._sock.fileno(), self._pid_fd], [], [], left)
            if self._sock.fileno() not in ready:
                continue
            hook_sock, _ = self._sock.accept()
            hook_sock.settimeout(_SECONDS)
            ns_fd = self._brought(hook_sock)
            if ns_fd is not None:
                pid_fd, self._pid_fd = self._pid_fd, -1
                return hook_sock, Workload(self._pid, pid_fd, ns_fd, os.fstat(ns_fd).st_ino)
            hook_sock.close()
        raise GraftError(f"nothing came from inside the container: its {STAGE} hook did not run")

    def _brought(self, hook_sock: socket.socket) -> int | None:
        pid, uid, _gid = control_sockets.peer(hook_sock)
        if uid != os.geteuid() or not self._is_above(pid):
            return None
        try:
            _data, fds, _flags, _address = socket.recv_fds(hook_sock, _QUESTION, 1)
        except OSError:
            return None
        for ns_fd in fds:
            try:
                if fcntl.ioctl(ns_fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
                    return ns_fd
            except OSError:
                pass
            os.close(ns_fd)
        return None

    def _is_above(self, pid: int) -> bool:
        for _ in range(_GENERATIONS):
            stat = proc.stat(pid)
            if stat is None:
                return False
            pid = stat.parent
            if pid == self._pid:
                return not workload.has_ended(self._pid_fd)
        return False
