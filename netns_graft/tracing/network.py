"""What each network call of a traced program means, and what is done about it.

::

    connect()   TCP   held in a true connect(), judged by the carrier, then connected with us or failed (crossing.py)
                UDP   to port 53: with a socket of ours; else with a closed door (datagrams.py)
    send*()     UDP   with an address: a question to be answered, or the errno of a closed network (sending.py)
    recv*()           a reply of ours bears the address that was asked (receiving.py)
    getpeername(), getsockname(), SO_ERROR: what a direct connection would show

A socket is known by its cookie, read from the very socket (``Call.sock``), so duplicates, forks and hand-overs need no
model. What is not ours to judge goes on natively: other families, other network namespaces, local destinations. What
should be judged and cannot be (no descriptor is left, the program's memory is closed to us) is refused.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from errno import (
    EACCES,
    EALREADY,
    ECONNABORTED,
    ECONNRESET,
    EINPROGRESS,
    EINVAL,
    ENOBUFS,
    ENOTCONN,
    EPIPE,
    EPROTONOSUPPORT,
)
from functools import partial
from typing import Protocol

from netns_graft.tracing import crossing
from netns_graft.tracing.call import Call
from netns_graft.tracing.connecting import Connecting
from netns_graft.tracing.datagrams import Datagrams, Question
from netns_graft.tracing.names import give_name, give_number, has_room
from netns_graft.tracing.peers import Peer, Peers
from netns_graft.tracing.reach import Reach
from netns_graft.tracing.receiving import Receiving
from netns_graft.tracing.sending import Sending
from netns_graft.tracing.services import Services
from netns_graft.tracing.sockets import (
    TCP_CLOSE,
    TCP_ESTABLISHED,
    blocks,
    bound_elsewhere,
    cookie,
    fresh,
    has_host,
    is_link_local,
    is_tcp,
    is_tied,
    is_udp,
    own_name,
    source_for,
    tcp_state,
)
from netns_graft.tracing.stopped import Stopped, int_argument
from netns_graft.wire import ProtocolError, sockaddr
from netns_graft.wire.sockaddr import Address

__all__ = ["Carrier", "Connecting", "Network", "Question"]

PENDING_LIMIT = 16384  # each holds a descriptor
# EINTR, and ERESTART*, by which the kernel's way back to the program decides between EINTR and calling anew
_INTERRUPTED = frozenset((-4, -512, -513, -514, -516))
# of a connect() whose socket was disconnected meanwhile; EPIPE since Linux 6.7
_TORN = frozenset((-ECONNRESET, -ECONNABORTED, -EPIPE))


class Carrier(Protocol):
    """The forwarder. It may answer at once or later."""

    def connecting(self, attempt: Connecting) -> None:
        """Judge and dial; then ``attempt.succeed()`` or ``attempt.fail(errno)``."""

    def asked(self, question: Question) -> None:
        """One DNS datagram; ``question.reply(bytes)``, or never."""

    def closed(self, caller: int, source: tuple[bytes, int], target: bytes, port: int) -> None:
        """UDP that is no question met a closed door."""


def _silent(_line: str) -> None:
    pass


class Network:
    """Owns the sockets by which programs are connected with us. ``watch(fd, handler)`` and ``forget(fd)`` are the
    reactor's; ``owns(host)``: is it an address of this host? ``warn`` gets lines for the user, each once.

    OSError when loopback is not up.
    """

    def __init__(
        self,
        carrier: Carrier,
        *,
        dns: bool,
        ignore_local: bool,
        owns: Callable[[bytes], bool],
        watch: Callable[[int, Callable[[int], bool | None]], None],
        forget: Callable[[int], None],
        warn: Callable[[str], None] = _silent,
        services: Services | None = None,
    ) -> None:
        self._carrier, self._warn = carrier, warn
        self._warned: set[str] = set()
        self._services = services or Services((), None)
        self._reach = Reach(dns=dns, ignore_local=ignore_local, owns=owns)
        self._peers = Peers()
        self._stopped = Stopped()
        self._rooms = crossing.Rooms()
        self._datagrams = Datagrams(carrier, self._peers, watch, forget)
        sending = Sending(self._stopped, self._reach, self._datagrams, self._warn_of)
        receiving = Receiving(self._stopped, self._datagrams)
        self._handlers: dict[str, Callable[[Call], None]] = {
            "connect": self._connect,
            "getpeername": self._getpeername,
            "getsockname": self._getsockname,
            "getsockopt": self._getsockopt,
            "sendto": sending.sendto,
            "sendmsg": sending.sendmsg,
            "sendmmsg": sending.sendmmsg,
            "recvfrom": receiving.recvfrom,
            "recvmsg": receiving.recvmsg,
            "recvmmsg": receiving.recvmmsg,
        }

    def on_call(self, call: Call) -> None:
        handler = self._handlers.get(call.name)
        if handler is None:
            call.go_on()
        else:
            handler(call)

    def ended(self, cookie: int) -> None:
        """The relay of this connection has finished."""
        self._peers.ended(cookie)

    def close(self) -> None:
        self._rooms.close()
        self._datagrams.close()

    # connect()

    def _connect(self, call: Call) -> None:
        raw = self._stopped.sockaddr(call, call.args[1], int_argument(call.args[2]), unix=True)
        if raw is None:
            return
        if sockaddr.family(raw) == sockaddr.AF_UNIX:
            number = self._services.refusal(call.pid, raw)
            if number:
                call.answer(-number)
            else:
                call.go_on()
            return
        sock = self._stopped.sock(call, must=True)
        if sock is None:
            return
        try:
            if sockaddr.family(raw) == sockaddr.AF_UNSPEC:
                self._dissolve(cookie(sock))
                call.go_on()
                return
            try:
                address = sockaddr.parse(raw)
            except ProtocolError:
                call.go_on()  # the kernel refuses it, too
                return
            if self._connect_to(call, sock, address):
                return  # the attempt has it
        except OSError as error:
            call.answer(-(error.errno or EACCES))
        sock.close()

    def _dissolve(self, number: int) -> None:
        peer = self._peers.pop(number)
        if peer is not None and peer.attempt is not None:
            peer.attempt.abandon()
        self._datagrams.forget(number)

    def _connect_to(self, call: Call, sock: socket.socket, address: Address) -> bool:
        """True: ``sock`` was taken over."""
        if is_tcp(sock):
            return self._connect_tcp(call, sock, address)
        if not _fits(sock, address):
            call.go_on()
        elif self._reach.is_local(address.host, address.port, datagram=sock.type != socket.SOCK_STREAM):
            self._datagrams.leave(sock)
            call.go_on()
        elif is_udp(sock):
            self._datagrams.connect(call, sock, address, dns=self._reach.is_dns(address.port))
        else:
            self._warn_of(sock)
            call.answer(-EPROTONOSUPPORT if sock.type == socket.SOCK_STREAM else -EACCES)
        return False

    def _connect_tcp(self, call: Call, sock: socket.socket, address: Address) -> bool:
        number, state = cookie(sock), tcp_state(sock)
        peer = self._peers.get(number)
        if state != TCP_CLOSE:
            if peer is None or peer.attempt is None:
                call.go_on()  # EISCONN, or a connection that is none of ours
            elif blocks(sock):
                self._wait(call, peer, number, -EALREADY)
            else:
                call.answer(-EALREADY)
            return False
        bound = peer.bound if peer is not None else has_host(own_name(sock)[0])
        if peer is not None and self._was_over(call, sock, number, peer):
            return False
        if self._reach.is_local(address.host, address.port) or not _fits(sock, address):
            call.go_on()
            return False
        if is_link_local(address.host) and not (address.scope or is_tied(sock)):
            call.answer(-EINVAL)
            return False
        return self._hold(call, sock, number, Peer(address.host, address.port, address.scope, bound))

    def _was_over(self, call: Call, sock: socket.socket, number: int, peer: Peer) -> bool:
        """``sock`` is closed and was not for all we know. True: its error, not yet told, is the answer."""
        if peer.attempt is not None:
            peer.attempt.abandon()
        code = self._peers.taken(peer)
        self._peers.pop(number)
        if code:
            fresh(sock)
            call.answer(-code)
        return code != 0

    def _hold(self, call: Call, sock: socket.socket, number: int, peer: Peer) -> bool:
        if self._peers.pending >= PENDING_LIMIT:
            call.answer(-ENOBUFS)
            return False
        blocking = blocks(sock)
        if bound_elsewhere(sock):
            self._warn_once("a socket tied to a network interface cannot be carried in mode ptrace")
        attempt = Connecting(sock, number, call.pid, peer, self._peers, self._rooms)
        self._peers.put(number, peer)
        self._carrier.connecting(attempt)
        sock_again = attempt.entered()
        if sock_again is not None:
            with closing(sock_again):
                self._at_once(call, sock_again, peer, blocking)
        elif blocking:
            self._wait(call, peer, number, -EINPROGRESS)
        else:
            call.answer(-EINPROGRESS)
        return True

    def _at_once(self, call: Call, sock: socket.socket, peer: Peer, blocking: bool) -> None:
        """The attempt is over before its call was let go."""
        code = self._peers.taken(peer)
        if code:
            call.answer(-code)
        elif not peer.connected:
            call.answer(-ECONNABORTED)
        elif blocking:
            crossing.finish(sock)
            call.answer(0)
        else:
            call.answer(-EINPROGRESS)

    def _wait(self, call: Call, peer: Peer, number: int, late: int) -> None:
        """The kernel's own connect() on a socket that is connecting: it looks at no address and waits. ``late`` is its
        result when the program's time limit (SO_SNDTIMEO) passes."""
        peer.waiting.append(call)
        call.go_on_then(partial(self._came_back, peer, number, late))

    def _came_back(self, peer: Peer, number: int, late: int, call: Call, result: int) -> int | None:
        peer.waiting = [other for other in peer.waiting if other is not call]
        if result in _INTERRUPTED:
            return None  # the connection goes on without it
        code = self._peers.taken(peer)
        if code:
            if not peer.waiters():
                self._after(call, number, fresh)
            return -code
        if peer.connected:
            if not (peer.torn and result in _TORN):
                return None
            return 0 if self._after(call, number, crossing.finish) else None
        if result in (-EINPROGRESS, -EALREADY):
            return late  # it goes on, too
        if peer.attempt is not None:
            peer.attempt.abandon()
        return result if result < 0 else -ECONNABORTED

    def _after(self, call: Call, number: int, do: Callable[[socket.socket], None]) -> bool:
        """``do`` with the call's socket, if that is still what its descriptor means."""
        try:
            with call.sock(int_argument(call.args[0])) as sock:
                if cookie(sock) != number:
                    return False
                if do is crossing.finish and tcp_state(sock) != TCP_ESTABLISHED:
                    return False
                do(sock)
        except OSError:
            return False
        return True

    # Names and errors

    def _getpeername(self, call: Call) -> None:
        found = self._known(call)
        if found is None:
            return
        sock, peer = found
        with sock:
            if not peer.port:
                call.answer(-ENOTCONN)  # UDP that is connected to no port is, to the kernel, not connected
                return
            try:
                sock.getpeername()
            except OSError:
                call.go_on()  # not, or no more, connected: the kernel's words
                return
            give_name(call, Address(sock.family, peer.host, peer.port, peer.scope))

    def _getsockname(self, call: Call) -> None:
        found = self._known(call)
        if found is None:
            return
        sock, peer = found
        with sock:
            host, port = own_name(sock)
            if peer.bound or not has_host(host):
                call.go_on()
                return
            if peer.source is None:
                try:
                    peer.source = source_for(peer.host, peer.port, peer.scope)
                except OSError:
                    call.go_on()  # there is no direct way; ours is the only truth
                    return
            host, scope = peer.source
            give_name(call, Address(sock.family, host, port, scope))

    def _known(self, call: Call) -> tuple[socket.socket, Peer] | None:
        """The call's socket and what is known of it. None: nothing, and the call goes on."""
        if not len(self._peers):
            call.go_on()
            return None
        sock = self._stopped.sock(call, must=False)
        if sock is None:
            return None
        peer = self._peers.get(cookie(sock))
        if peer is None:
            sock.close()
            call.go_on()
            return None
        return sock, peer

    def _getsockopt(self, call: Call) -> None:
        """SO_ERROR: an errno of ours is told once, and takes the kernel's own along."""
        if not self._peers.failures or (int_argument(call.args[1]), int_argument(call.args[2])) != _SO_ERROR:
            call.go_on()
            return
        found = self._known(call)
        if found is None:
            return
        sock, peer = found
        with sock:
            if not peer.number or not has_room(call, call.args[4]):
                call.go_on()  # whatever the kernel thinks of it, our error stays to be told
                return
            code = self._peers.taken(peer)
            sock.getsockopt(*_SO_ERROR)
        give_number(call, code)

    # Words for the user

    def _warn_of(self, sock: socket.socket) -> None:
        name = "raw sockets" if sock.type == socket.SOCK_RAW else _PROTOCOLS.get(sock.proto, f"protocol {sock.proto}")
        self._warn_once(f"{name}: closed, for mode ptrace carries TCP, and DNS over UDP")

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self._warn(line)


_SO_ERROR = (socket.SOL_SOCKET, socket.SO_ERROR)
_PROTOCOLS = {1: "ping sockets (ICMP)", 58: "ping sockets (ICMPv6)", 132: "SCTP", 136: "UDP-Lite", 262: "MPTCP"}


def _fits(sock: socket.socket, address: Address) -> bool:
    """May ``sock`` connect to an address of this form at all? Else the kernel says why not."""
    return sock.family == address.family or (sock.family == socket.AF_INET6 and not is_tcp(sock))
