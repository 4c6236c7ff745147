"""UDP of traced programs: questions to port 53 come here, everything else meets a closed door.

**An asked address** has a socket of ours on loopback, of which a program's socket is connected to, or sent to, instead.
A reply leaves from that socket, so the asked address can be put in its place wherever the program looks at a sender.
Loopback may be translated (SNAT), so a sender's address is not simply that of a program's socket: when it connects, one
datagram of ours, sent by that very socket, shows the address that its questions will come from.

**A closed door** is a socket of ours to which a program's socket is connected, so that the connect() succeeds as it
does for any UDP (glibc orders addresses that way). The first datagram that comes is noted, and the door vanishes: the
next send or receive says ECONNREFUSED.
"""

from __future__ import annotations

import os
import select
import socket
from collections import OrderedDict
from collections.abc import Callable
from errno import EACCES, EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH
from functools import partial
from typing import NamedTuple, Protocol

from netns_graft.linux.sockets import disconnect
from netns_graft.tracing.call import Call
from netns_graft.tracing.peers import Peer, Peers
from netns_graft.tracing.sockets import (
    LOOPBACK,
    bound_elsewhere,
    cookie,
    family_of,
    has_host,
    in_form,
    own_name,
    packed,
    ready,
    source_for,
)
from netns_graft.wire.sockaddr import Address

ASKED_LIMIT = 128  # asked addresses, a descriptor each
DOORS_LIMIT = 128  # closed doors, a descriptor each
CALLERS_LIMIT = 4096  # connected sockets of one asked address
TALKED_LIMIT = 8192  # sockets whose replies bear an address to be replaced
_BURST = 32
_LARGEST = 65536
_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

Watch = Callable[[int, Callable[[int], bool | None]], None]


class Wants(Protocol):
    """What of the carrier is needed here."""

    def asked(self, question: Question) -> None: ...

    def closed(self, caller: int, source: tuple[bytes, int], target: bytes, port: int) -> None: ...


Sender = tuple[str, int] | tuple[str, int, int, int]  # as Python gives the address of a datagram


class Caller(NamedTuple):
    pid: int
    cookie: int
    source: tuple[bytes, int]  # the name of its socket


class Question:
    """One DNS datagram of process ``pid`` to ``target``, from its socket's ``source`` (hosts are packed)."""

    __slots__ = ("_asked_sock", "_sender", "payload", "pid", "source", "target")

    def __init__(
        self, caller: Caller, target: bytes, payload: bytes, asked_sock: socket.socket, sender: Sender
    ) -> None:
        self.pid, self.source = caller.pid, caller.source
        self.target, self.payload = target, payload
        self._asked_sock, self._sender = asked_sock, sender

    def reply(self, payload: bytes) -> None:
        """To the asker, as from ``target``. Lost, as datagrams are, when it is there no more."""
        try:
            self._asked_sock.sendto(payload, _NOW, self._sender)
        except OSError:
            pass


class Asked:
    """The socket that stands for one asked address."""

    def __init__(self, host: bytes, scope: int) -> None:
        self.host, self.scope = host, scope
        self.sock = _loopback_udp(len(host))
        self.port: int = self.sock.getsockname()[1]
        self.callers: OrderedDict[Sender, Caller] = OrderedDict()  # by the sender's address as it comes here

    def know(self, sender: Sender, caller: Caller) -> None:
        self.callers.pop(sender, None)
        self.callers[sender] = caller
        if len(self.callers) > CALLERS_LIMIT:
            self.callers.popitem(last=False)

    def take(self) -> tuple[bytes, Sender] | None:
        """(payload, sender) of the next datagram."""
        while self.sock.fileno() >= 0:  # else dropped: a stale event
            try:
                return self.sock.recvfrom(_LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError:
                pass  # an ICMP error about a reply of ours, told once
        return None


class Datagrams:
    def __init__(self, carrier: Wants, peers: Peers, watch: Watch, forget: Callable[[int], None]) -> None:
        self._carrier, self._peers = carrier, peers
        self._watch, self._forget = watch, forget
        self._asked: OrderedDict[tuple[bytes, int], Asked] = OrderedDict()
        self._by_port: dict[tuple[int, int], Asked] = {}  # (size of its host, port)
        self._doors: OrderedDict[int, socket.socket] = OrderedDict()  # by the cookie of the program's socket
        self._talked: OrderedDict[int, None] = OrderedDict()

    def close(self) -> None:
        for asked in list(self._asked.values()):
            self._drop(asked)
        for number in list(self._doors):
            self._shut(number)

    # connect()

    def connect(self, call: Call, sock: socket.socket, address: Address, *, dns: bool) -> None:
        """Answer the program's connect() of ``sock`` (UDP) to ``address``. OSError is its errno."""
        number = cookie(sock)
        before = self._peers.get(number)
        bound = before.bound if before is not None else has_host(own_name(sock)[0])
        peer = Peer(address.host, address.port, address.scope, bound, connected=True)
        if not dns:
            peer.source = source_for(address.host, address.port, address.scope)  # or the errno of having no way
        if bound_elsewhere(sock):
            raise OSError(ENETUNREACH, "tied to an interface other than lo")
        self._shut(number)
        if dns:
            self._connect_asking(sock, number, call.pid, address)
        else:
            self._connect_closed(sock, number, call.pid, peer)
        self._peers.put(number, peer)
        call.answer(0)

    def _connect_asking(self, sock: socket.socket, number: int, pid: int, address: Address) -> None:
        asked = self._asked_for(address)
        while self._hear(asked):
            pass  # so that what comes next is ours
        sock.connect(in_form(sock, packed(LOOPBACK[len(asked.host)]), asked.port))
        mark = os.urandom(16)
        sock.send(mark, _NOW)
        sender = self._heard(asked, mark, lambda _: True)
        if sender is None:
            disconnect(sock)
            raise OSError(ENETUNREACH, "loopback does not carry it")
        asked.know(sender, Caller(pid, number, own_name(sock)))
        self._talk(number)

    def _connect_closed(self, sock: socket.socket, number: int, pid: int, peer: Peer) -> None:
        door_sock = _loopback_udp(len(peer.host))
        try:
            sock.connect(in_form(sock, packed(LOOPBACK[len(peer.host)]), door_sock.getsockname()[1]))
        except OSError:
            door_sock.close()
            raise
        self._doors[number] = door_sock
        caller = Caller(pid, number, own_name(sock))
        self._watch(door_sock.fileno(), partial(self._knocked, door_sock, caller, peer))
        if len(self._doors) > DOORS_LIMIT:
            self._shut(next(iter(self._doors)))

    def _knocked(self, door_sock: socket.socket, caller: Caller, peer: Peer, _events: int) -> bool:
        if self._doors.get(caller.cookie) is not door_sock:
            return False  # shut already: a stale event
        try:
            door_sock.recv(1, socket.MSG_DONTWAIT)
        except OSError:
            return False
        self._shut(caller.cookie)
        self._carrier.closed(caller.pid, caller.source, peer.host, peer.port)
        return False

    def leave(self, sock: socket.socket) -> None:
        """The program's ``sock`` connects to where we are not. If it was with us, it goes with an address of its own,
        not with the loopback's that it got here."""
        number = cookie(sock)
        peer = self._peers.pop(number)
        self.forget(number)
        if peer is not None and not peer.bound:
            disconnect(sock)

    def forget(self, number: int) -> None:
        """The program's socket has no peer any more."""
        self._shut(number)

    # Questions

    def ask(self, sock: socket.socket, pid: int, address: Address, payload: bytes) -> int:
        """Send ``payload`` by the program's ``sock`` to ``address`` (port 53). Returns what its call shall."""
        if bound_elsewhere(sock):
            return -ENETUNREACH
        try:
            asked = self._asked_for(address)
            while self._hear(asked):
                pass
            host, port = packed(LOOPBACK[len(asked.host)]), asked.port
            sent = sock.sendto(payload, _NOW, in_form(sock, host, port))
        except OSError as error:
            return -(error.errno or EACCES)
        number, (own_host, own_port) = cookie(sock), own_name(sock)
        # Not the same words of a connected socket; but what is known of a sender may be a socket's that is closed.
        sender = self._heard(
            asked, payload,
            lambda it: it not in asked.callers or it[1] == own_port or asked.callers[it].cookie == number,
        )  # fmt: skip
        if sender is None:
            return -EHOSTUNREACH
        self._talk(number)
        caller = Caller(pid, number, (own_host if has_host(own_host) else host, own_port))
        self._question(asked, caller, payload, sender)
        return sent

    def refuse(self, sock: socket.socket, pid: int, address: Address) -> int:
        """A datagram to anywhere else. Returns what its call shall: what a closed network says."""
        host, port = own_name(sock)
        if not has_host(host):
            try:
                host, _ = source_for(address.host, address.port, address.scope)
            except OSError:
                host = bytes(len(address.host))
        self._carrier.closed(pid, (host, port), address.host, address.port)
        return -EHOSTUNREACH if len(address.host) == 4 else -EACCES

    def _question(self, asked: Asked, caller: Caller, payload: bytes, sender: Sender) -> None:
        if payload:
            self._carrier.asked(Question(caller, asked.host, payload, asked.sock, sender))

    def _heard(self, asked: Asked, payload: bytes, is_ours: Callable[[Sender], bool]) -> Sender | None:
        """The sender of the ``payload`` that was just sent here. ``is_ours``: can it be from there?"""
        while True:
            datagram = asked.take()
            if datagram is None:
                if not ready(asked.sock, select.POLLIN):
                    return None
            elif datagram[0] == payload and is_ours(datagram[1]):
                return datagram[1]
            else:
                self._from_known(asked, *datagram)

    def _hear(self, asked: Asked, _events: int = 0) -> bool:
        """Datagrams of connected sockets. True: there may be more."""
        for _ in range(_BURST):
            datagram = asked.take()
            if datagram is None:
                return False
            self._from_known(asked, *datagram)
        return True

    def _from_known(self, asked: Asked, payload: bytes, sender: Sender) -> None:
        caller = asked.callers.get(sender)
        if caller is not None:
            self._question(asked, caller, payload, sender)

    # Who stands for whom

    def _asked_for(self, address: Address) -> Asked:
        """OSError: no descriptor or port is left, or this host has no such loopback."""
        key = address.host, address.scope
        asked = self._asked.get(key)
        if asked is not None:
            self._asked.move_to_end(key)
            return asked
        asked = self._asked[key] = Asked(*key)
        self._by_port[len(asked.host), asked.port] = asked
        self._watch(asked.sock.fileno(), partial(self._hear, asked))
        if len(self._asked) > ASKED_LIMIT:
            self._drop(next(iter(self._asked.values())))
        return asked

    def _drop(self, asked: Asked) -> None:
        del self._asked[asked.host, asked.scope]
        del self._by_port[len(asked.host), asked.port]
        self._forget(asked.sock.fileno())
        asked.sock.close()

    def _talk(self, number: int) -> None:
        self._talked.pop(number, None)
        self._talked[number] = None
        if len(self._talked) > TALKED_LIMIT:
            self._talked.popitem(last=False)

    def _shut(self, number: int) -> None:
        door_sock = self._doors.pop(number, None)
        if door_sock is not None:
            self._forget(door_sock.fileno())
            door_sock.close()

    @property
    def talks(self) -> bool:
        """Has anybody asked yet?"""
        return bool(self._talked)

    def has_talked(self, sock: socket.socket) -> bool:
        return cookie(sock) in self._talked

    def meant(self, sender: Address) -> Address | None:
        """What ``sender``, as a program was told it, stands for. None: itself."""
        if sender.host != packed(LOOPBACK[len(sender.host)]):
            return None
        asked = self._by_port.get((len(sender.host), sender.port))
        return Address(sender.family, asked.host, 53, asked.scope) if asked is not None else None


def _loopback_udp(size: int) -> socket.socket:
    host = LOOPBACK[size]
    sock = socket.socket(family_of(packed(host)), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind((host, 0))
    except OSError as error:
        sock.close()
        if error.errno == EADDRNOTAVAIL and size == 16:
            raise OSError(ENETUNREACH, "this host has no IPv6") from None
        raise
    return sock
