"""The cable: F and W, the veth between them, routes, nftables rules and the sockets born inside.

Theory of operation. ``build`` runs in a throw-away process that may create network namespaces (in our own user
namespace, or as root). It makes two of them:

* **W**, the workload's: ``lo`` and ``eth0``, one address of each family with a full-length prefix, one default route.
* **F**, the forwarder's: ``v0``, the other end, with the gateway's addresses, and no other interface. Whatever
  arrives on ``v0`` is routed to ``lo`` by a rule of its own ("AnyIP", table 100), so that the TPROXY listener gets it
  with the destination that the program asked for as its own local address.

Point-to-point: the two addresses lie in the range that the contract reserves for synthetic names, which exists
nowhere else, so no destination of the outside is shadowed. Neighbours are permanent entries: nobody asks
ARP, no address is probed, IPv6 has no link-local address and solicits nobody.

Everything that is not TCP, or DNS when we answer it, ends on arrival in F with an ICMP error. F forwards nothing
and has no other way out, whatever its rules say. F lives by its sockets alone: when the last process that holds them
ends, the kernel destroys F, with it the veth, and W has no route.

A SYN is held (see forwarder/core.py): the prerouting chain drops it unless its source address is ``mark``, a random
MAC that only our injection socket in W uses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from netns_graft.linux import gate, packet, rtnetlink, syscalls
from netns_graft.linux.cable import DNS_PORT, GATEWAY_V4, GATEWAY_V6, WORKLOAD_V4, WORKLOAD_V6, Wiring
from netns_graft.linux.rtnetlink import LinkEnd, Request, RouteSocket

MTU = 65535  # the largest a veth takes: +40 % throughput over 1500
FORWARDER_MAC, WORKLOAD_MAC = b"\x02graf\x01", b"\x02graf\x02"
TABLE = 100
RULE_PRIORITY = 100

_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_IP_PKTINFO = 8
_VETH, _WORKLOAD_VETH = "v0", "eth0"
_LOOPBACK = 1  # index of lo in every namespace
_CABLE_PATIENCE = 5.0  # seconds
_IFF_UP = 1
_SIOCGIFFLAGS = 0x8913
# Some kernels put these into every new network namespace (net.core.fb_tunnels_only_for_init_net).
_FALLBACK_TUNNELS = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
)


def build(
    *, hold: bool, dns: bool, loopback_resolvers: Iterable[str] = (), workload_ns_fd: int | None = None
) -> Wiring:
    """Make F and W and wire them. Leaves the calling process in W; call it in a process of its own.

    ``workload_ns_fd``: a W that exists (borrowed). It must be empty, or OSError EBUSY says what is in it.
    ``hold``: keep SYNs back until the verdict (needs packet sockets; falls back by itself when they are refused).
    ``loopback_resolvers``: addresses such as 127.0.0.53 on which DNS is answered inside W as well.
    Raises OSError.
    """
    ipv6 = _has_ipv6()
    if workload_ns_fd is None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        workload_ns_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    else:
        syscalls.setns(workload_ns_fd, syscalls.CLONE_NEWNET)
        _check_empty()
    _quiet_sysctls(ipv6)
    return _connect(_forwarder_alone(hold, dns, ipv6), workload_ns_fd, loopback_resolvers)


@dataclass(slots=True)
class Spare:
    """F with everything that needs no cable, made in advance."""

    forwarder_ns_fd: int
    route: RouteSocket  # of F
    listeners: list[socket.socket]
    resolvers: list[socket.socket]
    hold: bool
    mark: bytes
    ipv6: bool
    dns: bool


def build_spare(*, hold: bool, dns: bool) -> Spare:
    """Most of the work of ``build``, before anybody waits for it. Leaves the calling process in F."""
    spare = _forwarder_alone(hold, dns, _has_ipv6())
    _rehearse(spare)
    return spare


def connect_spare(spare: Spare, workload_ns_fd: int, loopback_resolvers: Iterable[str] = ()) -> Wiring:
    """The rest of it, for a W that exists (borrowed) and is empty. In everything else as ``build``."""
    syscalls.setns(workload_ns_fd, syscalls.CLONE_NEWNET)
    _check_empty()
    _quiet_sysctls(spare.ipv6)
    return _connect(spare, workload_ns_fd, loopback_resolvers)


def _forwarder_alone(hold: bool, dns: bool, ipv6: bool) -> Spare:
    """The rules name the cable's end, which is not there yet: the kernel compares names, packet by packet."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    forwarder_ns_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _quiet_sysctls(ipv6)
    route = RouteSocket()
    _route_to_listeners(route, ipv6)
    families = [socket.AF_INET, socket.AF_INET6] if ipv6 else [socket.AF_INET]
    listeners, port = _transparent_listeners(families)
    resolvers = [_dns_socket(family) for family in families] if dns else []
    mark = b"\x02" + os.urandom(5)
    gate.put_up(_VETH, port, mark=mark if hold else None, dns=dns)
    return Spare(forwarder_ns_fd, route, listeners, resolvers, hold, mark, ipv6, dns)


def _rehearse(spare: Spare) -> None:
    """The rest of it without a W: what a fork does for the second time takes a third of the time (broker/rehearsal)."""
    _check_empty()
    _quiet_sysctls(spare.ipv6)
    _forwarder_side_requests(_LOOPBACK, spare.ipv6)
    _workload_side_requests(_LOOPBACK, spare.ipv6)
    spare.route.sends(_LOOPBACK)


def _connect(side: Spare, workload_ns_fd: int, loopback_resolvers: Iterable[str]) -> Wiring:
    """The cable, W's side of it, and the sockets that are born at its ends."""
    syscalls.setns(side.forwarder_ns_fd, syscalls.CLONE_NEWNET)
    with side.route:
        index = _wire_forwarder_side(side.route, workload_ns_fd, side.ipv6)
        wiring = _connect_workload(side, workload_ns_fd, loopback_resolvers)
        _wait_for_cable(side.route, index)
    return wiring


def _connect_workload(side: Spare, workload_ns_fd: int, loopback_resolvers: Iterable[str]) -> Wiring:
    tap_sock = packet.open_tap(_VETH, side.mark) if side.hold else None

    syscalls.setns(workload_ns_fd, syscalls.CLONE_NEWNET)
    _wire_workload_side(side.ipv6)
    inject_sock = packet.open_injector(_WORKLOAD_VETH) if tap_sock else None
    resolvers = list(side.resolvers)
    if side.dns:
        for address in loopback_resolvers:
            resolvers += _loopback_resolver(address)
    if side.hold and not inject_sock:
        if tap_sock:
            tap_sock.close()
            tap_sock = None
        _accept_first(side)
        syscalls.setns(workload_ns_fd, syscalls.CLONE_NEWNET)
    return Wiring(
        side.forwarder_ns_fd, workload_ns_fd, side.listeners, resolvers, tap_sock, inject_sock, side.mark
    )


def _accept_first(side: Spare) -> None:
    """Packet sockets are refused: a SYN that is held could not be put back, so none may be."""
    syscalls.setns(side.forwarder_ns_fd, syscalls.CLONE_NEWNET)
    gate.remove()
    gate.put_up(_VETH, side.listeners[0].getsockname()[1], mark=None, dns=side.dns)


def _check_empty() -> None:
    """OSError EBUSY when the network namespace we are in has a way out, or anything that could become one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for _index, name in socket.if_nameindex():
            request = struct.pack("16sH14x", name.encode(), 0)
            (flags,) = struct.unpack_from("=H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
            if name != "lo" and (name not in _FALLBACK_TUNNELS or flags & _IFF_UP):
                raise OSError(errno.EBUSY, f"the network namespace already has an interface, {name}")
    with open("/proc/self/net/route", encoding="ascii") as table:  # the main table: a heading, then a line for each
        routes = [line.split()[0] for line in table.readlines()[1:]]
    try:
        with open("/proc/self/net/ipv6_route", encoding="ascii") as table:
            # Every table's; lo makes some by itself, and a namespace without IPv6 addresses has its null entries there.
            routes += [device for line in table if (device := line.split()[-1]) != "lo"]
    except FileNotFoundError:
        pass  # a kernel without IPv6
    if routes:
        raise OSError(errno.EBUSY, f"the network namespace already has a route, by {routes[0]}")


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _quiet_sysctls(ipv6: bool) -> None:
    """Settings of the network namespace we are in. IPv4 ones are inherited from the host's, so each is set."""
    for name, value in (
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "0"),  # sources and destinations are foreign to F by design
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/route_localnet", "0"),
        ("ipv4/conf/default/route_localnet", "0"),
        ("ipv4/icmp_ratelimit", "0"),  # refusals are immediate, each of them
        ("ipv4/icmp_ratemask", "0"),  # and none counts towards icmp_msgs_per_sec
    ):
        _sysctl(name, value)
    if not ipv6:
        return
    for name, value in (
        ("ipv6/conf/all/forwarding", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),  # no link-local address, hence no solicitations
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv6/icmp/ratemask", "255"),  # of a type that nobody sends; none at all is not a value
    ):
        _sysctl(name, value)


def _sysctl(name: str, value: str) -> None:
    # /proc/sys/net shows the namespace of the process that opens it; CAP_NET_ADMIN in its owner may write.
    try:
        with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        # A container may mount /proc/sys read-only, and old kernels lack some of these. Neither opens a way out:
        # F has one interface. What suffers is the speed of refusals.
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def _wire_forwarder_side(route: RouteSocket, workload_ns_fd: int, ipv6: bool) -> int:
    """Called in F. The index of the cable's end there."""
    ours = LinkEnd(_VETH, FORWARDER_MAC, MTU)
    route.do([rtnetlink.veth(ours, LinkEnd(_WORKLOAD_VETH, WORKLOAD_MAC, MTU, workload_ns_fd))])
    index = socket.if_nametoindex(_VETH)
    route.do(_forwarder_side_requests(index, ipv6))
    return index


def _forwarder_side_requests(index: int, ipv6: bool) -> list[Request]:
    requests = [rtnetlink.link_up(index)]
    for workload, gateway in _sides(ipv6):
        # The gateway's own address is only ever the source of ICMP errors.
        requests += [
            rtnetlink.address(index, gateway),
            rtnetlink.neighbour(index, workload, WORKLOAD_MAC),
            rtnetlink.route_on_link(index, workload),
            # W may have more addresses than we gave it: a program's own, NAT's, a nested namespace's. Answers to
            # them, too, go to W, where else.
            rtnetlink.default_route(index, workload),
        ]
    return requests


def _wait_for_cable(route: RouteSocket, index: int) -> None:
    """The first end to be set up sends nothing until a kernel thread has seen that the other is up (link_watch.c).

    That takes well under a millisecond, or twenty on a busy machine; an answer lost then costs the program a second
    for TCP and five for DNS.
    """
    end = time.monotonic() + _CABLE_PATIENCE
    while not route.sends(index):
        if time.monotonic() > end:
            raise OSError(errno.ETIMEDOUT, "the veth does not come up")
        time.sleep(0.0002)


def _route_to_listeners(route: RouteSocket, ipv6: bool) -> None:
    """Whatever arrives by the cable is for ourselves, whatever its destination."""
    requests = [rtnetlink.link_up(_LOOPBACK)]
    for family in (socket.AF_INET, socket.AF_INET6)[: 1 + ipv6]:
        requests += [
            rtnetlink.rule(family, _VETH, TABLE, RULE_PRIORITY),
            rtnetlink.everything_is_local(family, _LOOPBACK, TABLE),
        ]
    route.do(requests)


def _wire_workload_side(ipv6: bool) -> None:
    """Called in W."""
    with RouteSocket() as route:
        route.do(_workload_side_requests(socket.if_nametoindex(_WORKLOAD_VETH), ipv6))


def _workload_side_requests(index: int, ipv6: bool) -> list[Request]:
    sides = _sides(ipv6)
    requests: list[Request] = [rtnetlink.link_up(_LOOPBACK)]
    requests += [rtnetlink.address(index, workload) for workload, _gateway in sides]
    requests.append(rtnetlink.link_up(index))
    for _workload, gateway in sides:
        # The gateway lies in no prefix of ours, and need not.
        requests += [rtnetlink.neighbour(index, gateway, FORWARDER_MAC), rtnetlink.default_route(index, gateway)]
    return requests


def _sides(ipv6: bool) -> list[tuple[str, str]]:
    """W's address and the gateway's, of each family."""
    return [(WORKLOAD_V4, GATEWAY_V4), (WORKLOAD_V6, GATEWAY_V6)][: 1 + ipv6]


def _transparent_listeners(families: list[socket.AddressFamily]) -> tuple[list[socket.socket], int]:
    """One listener a family, on one port that is free in both. They take connections to *any* address."""
    listeners: list[socket.socket] = []
    port = 0
    for family in families:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        # Inherited by accepted sockets, as is TCP_NODELAY: one call here spares one per connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.listen(4096)
        port = sock.getsockname()[1]
        listeners.append(sock)
    return listeners, port


def _dns_socket(family: socket.AddressFamily) -> socket.socket:
    """UDP port 53 of every address: AnyIP brings the questions, packet info tells and sets the address asked."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.bind(("::", DNS_PORT))
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind(("0.0.0.0", DNS_PORT))
    return sock


def _loopback_resolver(address: str) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    socks = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.bind((address, DNS_PORT))
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            elif family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        except OSError:
            sock.close()  # an address that this namespace cannot have, or the same one listed twice
            continue
        socks.append(sock)
    return socks
