"""Unix sockets by which a forwarder or broker is asked things, and who may ask.

A workload shares our uid, and with ``exec`` our file system too, so directory modes do not keep it out. Its sockets
do: a socket belongs to the network namespace in which it was created, whatever process holds it, and the kernel makes
the accepted end of a Unix connection in the namespace of the *connecting* one (unix_stream_connect). So the accepted
socket itself tells whether it comes from a graft, with no process to look up and no race: by its namespace's cookie
(SO_NETNS_COOKIE, Linux 5.14), and before that by whether our own namespace's table lists it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_SO_NETNS_COOKIE = 71
_PATH_LIMIT = 107  # sun_path, without its NUL
_BACKLOG = 128


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``. FileExistsError when there is one already, whether or not anybody listens.

    It appears at ``path`` only once it listens: who finds that a connection is refused there knows it is stale.
    """
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{os.getpid()}-{name}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _with_address(temporary, sock.bind)
        try:
            os.chmod(temporary, 0o700)
            sock.listen(_BACKLOG)
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str, seconds: float) -> socket.socket:
    """Connect to ``path``; ``seconds`` is also the limit of whatever is done with the socket later. OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(seconds)
        _with_address(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def remove_stale(path: str) -> bool:
    """Remove the socket at ``path`` if nobody listens there. True when there is none any more."""
    try:
        connect(path, 1.0).close()
    except ConnectionRefusedError:
        pass
    except FileNotFoundError:
        return True
    except OSError:
        return False
    else:
        return False
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return True


def remove(path: str, inode: int) -> None:
    """Remove our own socket, and not one that somebody has put in its place since."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass


def refusal(accepted_sock: socket.socket) -> str | None:
    """Why the other end of an accepted connection may not ask; None when it may.

    It must have been opened by our own user, in our own network namespace. In a user namespace without a mapping for
    it, another user shows as the overflow uid, and so is refused.
    """
    _pid, uid, _gid = peer(accepted_sock)
    if uid != os.geteuid():
        return f"uid {uid} is not ours"
    if not is_of_our_network(accepted_sock):
        return "it comes from another network namespace, as a graft is"
    return None


def peer(accepted_sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever called connect(2), in our own numbering."""
    pid, uid, gid = struct.unpack("iII", accepted_sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def is_of_our_network(accepted_sock: socket.socket) -> bool:
    """Was the connecting socket created in the network namespace that this process is in?"""
    try:
        theirs = accepted_sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return is_in_our_table(accepted_sock)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as own:
        return own.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) == theirs


def is_in_our_table(accepted_sock: socket.socket) -> bool:
    """As ``is_of_our_network``, for older kernels: the table of Unix sockets shows those of one namespace."""
    inode = b"%d" % os.fstat(accepted_sock.fileno()).st_ino
    with open("/proc/self/net/unix", "rb") as table:
        next(table)
        # Num RefCount Protocol Flags Type St Inode Path
        return any(line.split(maxsplit=7)[6] == inode for line in table)


def _with_address(path: str, call: object) -> None:
    """``call(path)``, by way of an open directory when the path is longer than an address may be."""
    assert callable(call)
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        call(path)
        return
    directory, name = os.path.split(path)
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{directory_fd}/{name}")
    finally:
        os.close(directory_fd)
