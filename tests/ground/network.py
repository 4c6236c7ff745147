"""Network namespaces held by a descriptor, what is born in them, and a small Internet.

::

    the test's own namespace ("host")          inet
      h0: 192.0.2.10, 2001:db8:1::10  ◄─veth─►   i0: 192.0.2.1, 2001:db8:1::1
      default routes to inet                      lo: WEB, WEB6, OTHER
      knows no way to UNREACHABLE (EHOSTUNREACH), answers "host unreachable" for FAR_UNREACHABLE and
      may not go to PROHIBITED (EACCES)           nothing at all for SILENT
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from pyroute2 import IPRoute

from ground.child import eventually, loopback_up
from netns_graft.linux import syscalls

HOST, HOST6 = "192.0.2.10", "2001:db8:1::10"
GATEWAY, GATEWAY6 = "192.0.2.1", "2001:db8:1::1"
WEB, WEB6 = "93.184.216.34", "2606:2800:220:1::1"
OTHER = "198.51.100.67"
UNREACHABLE, UNREACHABLE6 = "203.0.113.98", "2001:db8:98::1"
PROHIBITED, PROHIBITED6 = "203.0.113.97", "2001:db8:97::1"
SILENT, SILENT6 = "203.0.113.99", "2001:db8:99::1"
FAR_UNREACHABLE, FAR_UNREACHABLE6 = "203.0.113.96", "2001:db8:96::1"

_IFF_RUNNING = 0x40
MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


class Network:
    """A network namespace that lives as long as this object (or a process in it). Owns ``fd``."""

    def __init__(self, fd: int | None = None) -> None:
        """Takes over ``fd``; without one, makes a new namespace with ``lo`` up."""
        if fd is None:
            with _and_back():
                syscalls.unshare(syscalls.CLONE_NEWNET)
                loopback_up()
                fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.fd = fd

    @property
    def inode(self) -> int:
        return os.fstat(self.fd).st_ino

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This process is in the namespace meanwhile."""
        with _and_back():
            syscalls.setns(self.fd, syscalls.CLONE_NEWNET)
            yield

    def enter(self) -> None:
        """This process, for good: for a fork of the test."""
        syscalls.setns(self.fd, syscalls.CLONE_NEWNET)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Born inside, with a time limit so that a test ends in any case."""
        with self.inside():
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(5)
        return sock

    def listener(self, address: str, port: int = 0, backlog: int = 16) -> socket.socket:
        """Bound to ``address`` and listening; the kernel completes handshakes without anybody's help."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


@contextmanager
def _and_back() -> Iterator[None]:
    before_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        syscalls.setns(before_fd, syscalls.CLONE_NEWNET)
        os.close(before_fd)


def veth(name: str, peer: str, peer_network: Network, *, mtu: int = 1500) -> None:
    """A pair with the MACs ``MAC`` (``name``, here) and ``PEER_MAC`` (``peer``). Both down, without addresses."""
    far = {"ifname": peer, "net_ns_fd": peer_network.fd, "address": PEER_MAC, "mtu": mtu}
    with IPRoute() as route:
        route.link("add", ifname=name, kind="veth", address=MAC, mtu=mtu, peer=far)


def neighbour(name: str, address: str, mac: str) -> None:
    """Known for good: whoever asks first would wait a second when the question meets a link that just came up."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=name)[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        route.neigh("add", family=family, dst=address, lladdr=mac, ifindex=index, state="permanent")


def configure(name: str, *addresses: str) -> int:
    """Set a link of this namespace up with ``addresses`` ("192.0.2.1/24"). Returns its index."""
    with IPRoute() as route:
        index: int = route.link_lookup(ifname=name)[0]
        for address in addresses:
            text, _, length = address.partition("/")
            v6 = ":" in text
            flags = {"flags": 0x02} if v6 else {}  # IFA_F_NODAD: usable at once
            route.addr(
                "add", family=socket.AF_INET6 if v6 else socket.AF_INET, index=index, address=text,
                prefixlen=int(length), **flags,
            )  # fmt: skip
        route.link("set", index=index, state="up")
    return index


def ready(*ends: tuple[Network | None, str]) -> None:
    """Wait until links carry packets (None: of the namespace that we are in). A cable does when both ends are up, and
    a kernel thread has seen it: until then IPv6 does not use it, and what should be sent is dropped.
    """
    for network, name in ends:
        with network.inside() if network else nullcontext(), IPRoute() as route:
            assert eventually(partial(_carries, route, name)), f"{name} does not come up"


def _carries(route: IPRoute, name: str) -> bool:
    [link] = route.get_links(route.link_lookup(ifname=name)[0])
    return link.get("qdisc") != "noop" and bool(link["flags"] & _IFF_RUNNING)


def add_route(destination: str, **what: Any) -> None:
    family = socket.AF_INET6 if ":" in destination or ":" in str(what.get("gateway", "")) else socket.AF_INET
    with IPRoute() as route:
        route.route("add", family=family, dst=destination, **what)


def whole(address: str) -> str:
    """The prefix of this one address."""
    return f"{address}/{128 if ':' in address else 32}"


def sysctl(name: str, value: str | None = None) -> str:
    """Of the namespace that we are in; its value, after setting it when one is given."""
    path = "/proc/sys/" + name
    if value is not None:
        with open(path, "w") as file:
            file.write(value)
    with open(path) as file:
        return file.read().strip()


@contextmanager
def internet() -> Iterator[Network]:
    """Make the test's own namespace a host on a small Internet, which is given."""
    with Network() as inet:
        veth("h0", "i0", inet)
        with inet.inside():
            configure("i0", f"{GATEWAY}/24", f"{GATEWAY6}/64")
            for address in (HOST, HOST6):
                neighbour("i0", address, MAC)
            configure("lo", f"{WEB}/32", f"{WEB6}/128", f"{OTHER}/32")
            sysctl("net/ipv4/ip_forward", "1")
            sysctl("net/ipv6/conf/all/forwarding", "1")
            sysctl("net/ipv4/icmp_ratelimit", "0")
            sysctl("net/ipv6/icmp/ratelimit", "0")
            for address in (SILENT, SILENT6):
                add_route(whole(address), type="blackhole")
            for address in (FAR_UNREACHABLE, FAR_UNREACHABLE6):
                add_route(whole(address), type="unreachable")
        for address in (UNREACHABLE, UNREACHABLE6):
            add_route(whole(address), type="unreachable")
        for address in (PROHIBITED, PROHIBITED6):
            add_route(whole(address), type="prohibit")
        configure("h0", f"{HOST}/24", f"{HOST6}/64")
        ready((None, "h0"), (inet, "i0"))
        for address in (GATEWAY, GATEWAY6):
            neighbour("h0", address, PEER_MAC)
        add_route("default", gateway=GATEWAY)
        add_route("default", gateway=GATEWAY6)
        yield inet
