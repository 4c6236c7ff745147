"""What a stopped call points to: its socket, its addresses. Whatever cannot be had is dealt with here.

What the kernel would refuse as well (EBADF, EFAULT, EINVAL) it is left to refuse. What only we cannot have must not go
on unseen: a connect() or a send is refused then.
"""

from __future__ import annotations

import socket
from errno import EACCES, EBADF, EFAULT, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, ESRCH

from netns_graft.tracing.call import Call
from netns_graft.tracing.sockets import INET, network_cookie
from netns_graft.wire import sockaddr

_KERNELS_TOO = frozenset((EBADF, ENOTSOCK, EFAULT, ESRCH))
_SHORT = frozenset((EMFILE, ENFILE, ENOMEM))
_FAMILIES = frozenset((sockaddr.AF_UNSPEC, sockaddr.AF_INET, sockaddr.AF_INET6))


def int_argument(register: int) -> int:
    """A register as the int that the kernel takes from it."""
    low = register & 0xFFFFFFFF
    return low - (1 << 32) if low & 1 << 31 else low


class Stopped:
    """Each method that finds nothing lets the call go, or answers it, and returns None."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours_sock:
            self._network = network_cookie(ours_sock)

    def sock(self, call: Call, *, must: bool) -> socket.socket | None:
        """The call's socket (the caller closes it) if it is IPv4's or IPv6's and of our network namespace.

        ``must``: unseen it may not go on.
        """
        try:
            sock = call.sock(int_argument(call.args[0]))
        except OSError as error:
            self.unseen(call, error, must=must)
            return None
        if sock.family in INET and network_cookie(sock) == self._network:
            return sock
        sock.close()
        call.go_on()
        return None

    def sockaddr(self, call: Call, place: int, length: int, *, unix: bool = False) -> bytes | None:
        """The sockaddr that a connect() or a send goes to, if it may be one of IPv4 or IPv6, or with ``unix`` such."""
        if not 2 <= length <= sockaddr.LONGEST:
            call.go_on()
            return None
        raw = self.read(call, place, length)
        if raw is None or (unix and sockaddr.family(raw) == sockaddr.AF_UNIX):
            return raw
        if sockaddr.family(raw) not in _FAMILIES:
            call.go_on()
            return None
        return raw

    def read(self, call: Call, place: int, size: int) -> bytes | None:
        try:
            return call.read(place, size)
        except OSError as error:
            self.unseen(call, error, must=True)
            return None

    def unseen(self, call: Call, error: OSError, *, must: bool) -> None:
        if must and error.errno not in _KERNELS_TOO:
            call.answer(-ENOBUFS if error.errno in _SHORT else -EACCES)
        else:
            call.go_on()
