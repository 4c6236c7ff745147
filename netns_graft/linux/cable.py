"""What the wiring hands to the forwarder, and the addresses at both ends. Plain data: importing this costs nothing.

``wiring`` builds it, in a process of its own; ``send`` and ``receive`` carry it to the
forwarder over a Unix socket.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

WORKLOAD_V4, GATEWAY_V4 = "198.18.0.1", "198.18.0.2"
WORKLOAD_V6, GATEWAY_V6 = "fd6e:6574:6772::1", "fd6e:6574:6772::2"
DNS_PORT = 53

_FDS_PER_MESSAGE = 64


@dataclass(slots=True)
class Wiring:
    """Sockets and namespaces of one graft. The holder owns every one of them and closes them."""

    forwarder_ns_fd: int
    workload_ns_fd: int
    listeners: list[socket.socket]  # TCP in F, transparent: IPv4 and, where the kernel has it, IPv6
    resolvers: list[socket.socket] = field(default_factory=list)  # UDP 53 in F; loopback resolvers in W, UDP and TCP
    tap_sock: socket.socket | None = None  # packet socket on v0: sees SYNs, sends answers into W; None: accept first
    inject_sock: socket.socket | None = None  # packet socket on W's eth0: puts a held SYN back on the wire
    mark: bytes = b""  # the source MAC by which F knows such a SYN

    def send(self, channel: socket.socket) -> None:
        """Hand everything over ``channel`` (a SOCK_SEQPACKET Unix socket) and keep nothing open here."""
        fds = [self.forwarder_ns_fd, self.workload_ns_fd]
        layout = {"mark": self.mark.hex()}
        socks = [*self.listeners, *self.resolvers]
        layout |= {"listeners": str(len(self.listeners)), "resolvers": str(len(self.resolvers))}
        if self.tap_sock is not None and self.inject_sock is not None:
            socks += [self.tap_sock, self.inject_sock]
            layout["hold"] = "1"
        fds += [sock.fileno() for sock in socks]
        if len(fds) > _FDS_PER_MESSAGE:
            raise ValueError(f"{len(fds)} descriptors are more than one message carries")
        socket.send_fds(channel, [json.dumps(layout).encode()], fds)

    @classmethod
    def receive(cls, channel: socket.socket) -> Wiring | None:
        """What ``send`` sent, or None when the sender ended without a word."""
        fds = array.array("i")
        data, ancillary, _flags, _address = channel.recvmsg(
            65536, socket.CMSG_SPACE(_FDS_PER_MESSAGE * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for _level, _kind, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            return None
        layout = json.loads(data)
        forwarder_ns_fd, workload_ns_fd, *rest = fds
        taken: Iterator[socket.socket] = (socket.socket(fileno=fd) for fd in rest)
        wiring = cls(forwarder_ns_fd, workload_ns_fd, [])
        wiring.listeners = [next(taken) for _ in range(int(layout["listeners"]))]
        wiring.resolvers = [next(taken) for _ in range(int(layout["resolvers"]))]
        if "hold" in layout:
            wiring.tap_sock, wiring.inject_sock = next(taken), next(taken)
        wiring.mark = bytes.fromhex(layout["mark"])
        for sock in wiring.sockets():
            sock.setblocking(False)
        return wiring

    def sockets(self) -> list[socket.socket]:
        optional = [sock for sock in (self.tap_sock, self.inject_sock) if sock is not None]
        return [*self.listeners, *self.resolvers, *optional]
