"""send calls that name a destination: questions are asked, the rest of UDP is refused, TCP names none.

A datagram that is ours is read from the program's memory once, and sent by us on the program's own socket; what was
judged is what is sent. Control messages that go with it (a source address to be used) do not reach further than us and
are left out.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from errno import EACCES, EINVAL, EMSGSIZE, EOPNOTSUPP, EPROTONOSUPPORT, ESRCH

from netns_graft.tracing.call import Call
from netns_graft.tracing.datagrams import Datagrams
from netns_graft.tracing.reach import Reach
from netns_graft.tracing.sockets import in_form, is_udp
from netns_graft.tracing.stopped import Stopped, int_argument
from netns_graft.wire import ProtocolError, sockaddr
from netns_graft.wire.sockaddr import Address, Message

_MSG_FASTOPEN = 0x20000000
_LARGEST = 65535


class Sending:
    """``warn_of(sock)``: a kind of socket that is not carried."""

    def __init__(
        self, stopped: Stopped, reach: Reach, datagrams: Datagrams, warn_of: Callable[[socket.socket], None]
    ) -> None:
        self._stopped, self._reach, self._datagrams, self._warn_of = stopped, reach, datagrams, warn_of

    # The three calls

    def sendto(self, call: Call) -> None:
        _, data, size, flags, name, length = call.args
        if self._opens_fast(call, flags):
            return
        if name == 0 or int_argument(length) == 0:
            call.go_on()
            return
        raw = self._stopped.sockaddr(call, name, int_argument(length))
        sock = self._stopped.sock(call, must=True) if raw is not None else None
        if raw is None or sock is None:
            return
        with sock:
            address = self._destination(sock, raw)
            if address is None:
                call.go_on()
                return
            self._answer(call, lambda: self._send(call, sock, address, [(data, size)]))

    def sendmsg(self, call: Call) -> None:
        if self._opens_fast(call, call.args[2]):
            return
        header = self._stopped.read(call, call.args[1], sockaddr.MESSAGE_SIZE[call.wide])
        if header is None:
            return
        message = sockaddr.parse_message(header, wide=call.wide)
        length = min(message.name_length, sockaddr.LONGEST)  # as the kernel takes it, here and only here
        if message.name == 0 or length == 0:
            call.go_on()
            return
        raw = self._stopped.sockaddr(call, message.name, length)
        sock = self._stopped.sock(call, must=True) if raw is not None else None
        if raw is None or sock is None:
            return
        with sock:
            address = self._destination(sock, raw)
            if address is None:
                call.go_on()
                return
            self._answer(call, lambda: self._send(call, sock, address, self._vectors(call, message)))

    def sendmmsg(self, call: Call) -> None:
        if self._opens_fast(call, call.args[3]):
            return
        count = min(call.args[2] & 0xFFFFFFFF, sockaddr.MOST_MESSAGES)
        step = sockaddr.MESSAGES_STEP[call.wide]
        headers = self._stopped.read(call, call.args[1], count * step) if count else b""
        if headers is None:
            return
        messages = [
            sockaddr.parse_message(headers[at : at + step], wide=call.wide) for at in range(0, count * step, step)
        ]
        if not any(message.name and message.name_length for message in messages):
            call.go_on()
            return
        sock = self._stopped.sock(call, must=True)
        if sock is None:
            return
        with sock:
            try:
                destinations = [self._destination_of(call, sock, message) for message in messages]
            except OSError as error:
                self._stopped.unseen(call, error, must=True)
                return
            if any(destinations):
                self._answer(call, lambda: self._send_all(call, sock, messages, destinations))
            else:
                call.go_on()

    # Where to

    def _destination_of(self, call: Call, sock: socket.socket, message: Message) -> Address | None:
        length = min(message.name_length, sockaddr.LONGEST)
        if message.name == 0 or length < 2:
            return None
        return self._destination(sock, call.read(message.name, length))

    def _destination(self, sock: socket.socket, raw: bytes) -> Address | None:
        """Where a send on ``sock`` to ``raw`` would go. None: nowhere that concerns us, or the kernel refuses it."""
        family = sockaddr.family(raw)
        if sock.family == socket.AF_INET:
            if family not in (sockaddr.AF_INET, sockaddr.AF_UNSPEC):
                return None
            family = sockaddr.AF_INET  # for a send, Linux takes AF_UNSPEC for it
        elif family not in (sockaddr.AF_INET, sockaddr.AF_INET6):
            return None  # AF_UNSPEC: no address
        if sock.type == socket.SOCK_STREAM and sock.proto in _NAMELESS:
            return None
        try:
            address = sockaddr.parse(raw, family)
        except ProtocolError:
            return None
        if self._reach.is_local(address.host, address.port, datagram=True):
            return None
        return address._replace(family=sock.family)

    def _opens_fast(self, call: Call, flags: int) -> bool:
        """A send that would connect (TCP Fast Open). It is told that there is no such thing, as by a kernel that has
        it switched off; programs connect then. True: the call is done with."""
        if not flags & _MSG_FASTOPEN:
            return False
        sock = self._stopped.sock(call, must=True)
        if sock is None:
            return True
        with sock:
            if sock.type != socket.SOCK_STREAM:
                return False
            try:
                sock.getpeername()
            except OSError:
                call.answer(-EOPNOTSUPP)
                return True
        call.go_on()
        return True

    # What

    def _send(self, call: Call, sock: socket.socket, address: Address, parts: list[tuple[int, int]]) -> int:
        """The call's result for one datagram. OSError: the program's memory."""
        if not is_udp(sock):
            self._warn_of(sock)
            return -EPROTONOSUPPORT if sock.type == socket.SOCK_STREAM else -EACCES
        if not self._reach.is_dns(address.port):
            return self._datagrams.refuse(sock, call.pid, address)
        payload = self._payload(call, parts)
        return -EMSGSIZE if payload is None else self._datagrams.ask(sock, call.pid, address, payload)

    def _send_all(
        self, call: Call, sock: socket.socket, messages: list[Message], destinations: list[Address | None]
    ) -> int:
        """As sendmmsg(): the number sent before the first that failed, or that one's errno. It may be fewer, too."""
        step = sockaddr.MESSAGES_STEP[call.wide]
        for number, (message, address) in enumerate(zip(messages, destinations, strict=True)):
            if address is None:
                if number:
                    return number  # the program sends the rest with another call, which the kernel sees first
                result = self._send_plain(call, sock, message)
            else:
                result = self._send(call, sock, address, self._vectors(call, message))
            if result < 0:
                return number or result
            length_place = call.args[1] + number * step + sockaddr.MESSAGE_SIZE[call.wide]
            call.write(length_place, result.to_bytes(4, "little"))
        return len(messages)

    def _send_plain(self, call: Call, sock: socket.socket, message: Message) -> int:
        """One that is not ours, before one that is: to where ``sock`` is connected, or to the host itself."""
        payload = self._payload(call, self._vectors(call, message))
        if payload is None:
            return -EMSGSIZE
        try:
            if not message.name or not message.name_length:
                return sock.send(payload, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            raw = call.read(message.name, min(message.name_length, sockaddr.LONGEST))
            address = sockaddr.parse(raw, sockaddr.AF_INET if sock.family == socket.AF_INET else None)
            if not self._reach.is_local(address.host, address.port, datagram=True):
                return -EACCES  # changed since it was judged
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            return sock.sendto(payload, flags, in_form(sock, address.host, address.port))
        except ProtocolError:
            return -EINVAL

    def _vectors(self, call: Call, message: Message) -> list[tuple[int, int]]:
        if message.vector_count > sockaddr.MOST_VECTORS:
            raise OSError(EMSGSIZE, "too many iovecs")
        size = message.vector_count * sockaddr.VECTOR_SIZE[call.wide]
        return sockaddr.parse_vectors(call.read(message.vectors, size) if size else b"", wide=call.wide)

    def _payload(self, call: Call, parts: list[tuple[int, int]]) -> bytes | None:
        """None: more than a datagram holds."""
        if sum(size for _, size in parts) > _LARGEST:
            return None
        return b"".join(call.read(place, size) for place, size in parts if size)

    def _answer(self, call: Call, send: Callable[[], int]) -> None:
        try:
            result = send()
        except OSError as error:
            if error.errno == ESRCH:
                call.go_on()
                return
            result = -(error.errno or EINVAL)
        call.answer(result)


_NAMELESS = frozenset((socket.IPPROTO_TCP, 262))  # whatever address is given is not looked at; 262: MPTCP
