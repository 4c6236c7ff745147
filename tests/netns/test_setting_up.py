"""The messages that set up links, addresses, routes and rules: what the kernel refuses is told, by its name."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial

import pytest
from ground.child import eventually, in_own_namespaces
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from netns_graft.linux import gate, rtnetlink, syscalls
from netns_graft.linux.rtnetlink import LinkEnd, RouteSocket

MAC = b"\x02abcde"
LOOPBACK = 1


def in_a_new_network() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)


def tables() -> list[str]:
    with NFTables(nfgen_family=1) as nft:
        return [table.get("name") for table in nft.get_tables()]


@in_own_namespaces
def test_the_first_refusal_is_told_and_what_follows_is_done_all_the_same() -> None:
    in_a_new_network()
    with RouteSocket() as route:
        wanted = [rtnetlink.link_up(LOOPBACK), rtnetlink.link_up(4711), rtnetlink.address(4711, "192.0.2.1")]
        with pytest.raises(OSError) as caught:
            route.do([*wanted, rtnetlink.address(LOOPBACK, "2001:db8::1")])
        assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "link 4711")
    with IPRoute() as other:
        assert "2001:db8::1" in {it.get("address") for it in other.get_addr()}
        assert other.get_links(LOOPBACK)[0]["flags"] & 1


@in_own_namespaces
def test_nothing_is_made_twice() -> None:
    in_a_new_network()
    here_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    request = rtnetlink.veth(LinkEnd("a", MAC, 1500), LinkEnd("b", MAC, 9000, here_fd))
    with RouteSocket() as route:
        route.do([request])
        with pytest.raises(FileExistsError):
            route.do([request])
        with pytest.raises(OSError) as caught:
            route.sends(4711)
        assert caught.value.errno == errno.ENODEV
    os.close(here_fd)
    with IPRoute() as other:
        found = {it.get("ifname"): (it.get("address"), it.get("mtu")) for it in other.get_links()}
    assert found["a"] == ("02:61:62:63:64:65", 1500)
    assert found["b"] == ("02:61:62:63:64:65", 9000)


@in_own_namespaces
def test_an_end_sends_once_the_other_end_is_up() -> None:
    in_a_new_network()
    here_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with RouteSocket() as route:
        route.do([rtnetlink.veth(LinkEnd("a", MAC, 1500), LinkEnd("b", MAC, 1500, here_fd))])
        first, second = socket.if_nametoindex("a"), socket.if_nametoindex("b")
        route.do([rtnetlink.link_up(first)])
        assert not route.sends(first)
        route.do([rtnetlink.link_up(second)])
        for index in (first, second):
            assert eventually(partial(route.sends, index))
    os.close(here_fd)


@in_own_namespaces
def test_a_gate_that_is_refused_leaves_nothing_of_itself() -> None:
    in_a_new_network()
    with pytest.raises(OSError) as caught:
        gate.put_up("v0", 1, mark=b"", dns=True)  # nothing cannot be compared with; all before it could be done
    assert caught.value.errno == errno.EINVAL
    assert tables() == []


@in_own_namespaces
def test_a_gate_is_put_up_and_removed_as_a_whole() -> None:
    in_a_new_network()
    gate.put_up("v0", 1, mark=MAC, dns=True)
    assert tables() == ["graft"]
    gate.remove()
    assert tables() == []
    with pytest.raises(FileNotFoundError):
        gate.remove()
