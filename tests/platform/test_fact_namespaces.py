"""What namespaces do for us. The one picture of design and ARCHITECTURE rests on these."""

from __future__ import annotations

import os
import signal
import socket

from ground.child import end, eventually, fork, in_own_namespaces, wait
from ground.network import Network, add_route, configure, sysctl, veth

from netns_graft.linux import syscalls


@in_own_namespaces
def test_an_ordinary_user_makes_user_and_network_namespaces() -> None:
    """Falls: nothing of netns-graft works without root. (What this decorator did is the proof; here are its marks.)"""
    links = {name for _, name in socket.if_nameindex()}
    assert "lo" in links and not links & {"eth0", "h0", "v0"}
    with Network() as other:
        veth("h0", "i0", other)  # CAP_NET_ADMIN in the network namespace
        assert "h0" in {name for _, name in socket.if_nameindex()}


@in_own_namespaces
def test_the_caller_keeps_its_ids() -> None:
    """Identity mapping: falls, and a program in a graft would see another user than its own, or root."""
    with open("/proc/self/uid_map") as file:
        uid_map = [tuple(map(int, line.split())) for line in file]
    assert any(inside == outside and inside <= os.getuid() < inside + count for inside, outside, count in uid_map)


@in_own_namespaces
def test_a_veth_takes_an_mtu_of_65535() -> None:
    """Falls: throughput, by some 40 %."""
    with Network() as other:
        veth("here", "there", other, mtu=65535)
        assert sysctl("net/ipv6/conf/here/mtu") == "65535"
        with other.inside():
            assert sysctl("net/ipv6/conf/there/mtu") == "65535"


@in_own_namespaces
def test_a_socket_stays_in_the_namespace_in_which_it_was_made() -> None:
    """Falls: one process could not listen in F, look into W and dial from the host."""
    with Network() as other:
        with other.inside():
            listener = socket.create_server(("127.0.0.1", 7000))
        with listener:
            with socket.socket() as here:
                assert here.connect_ex(("127.0.0.1", 7000)) != 0
            with other.inside():
                client = socket.create_connection(("127.0.0.1", 7000))
            with client:  # both ends are held by a process that is elsewhere
                served, _ = listener.accept()
                with served:
                    served.sendall(b"through")
                    assert client.recv(10) == b"through"


@in_own_namespaces
def test_a_socket_passed_to_another_process_stays_in_its_namespace() -> None:
    """SCM_RIGHTS. Falls: the builder could not hand its sockets to the forwarder. (And why `exec` closes every
    descriptor from 3 up: a socket of the host's in the command would be a way out.)
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def builder() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with socket.socket() as sock:
            socket.send_fds(theirs, [b"x"], [sock.fileno()])

    with ours, theirs, socket.create_server(("127.0.0.1", 7001)):
        pid = fork(builder)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        assert wait(pid) == 0
        with socket.socket(fileno=fds[0]) as foreign, socket.socket() as own:
            assert own.connect_ex(("127.0.0.1", 7001)) == 0
            assert foreign.connect_ex(("127.0.0.1", 7001)) != 0  # its "lo" is another one, and down


@in_own_namespaces
def test_killing_the_last_holder_of_a_namespace_takes_the_cable_away() -> None:
    """Falls: fail-closed by construction. F lives by the forwarder's descriptors alone: SIGKILL, and W has no eth0."""
    ready_read, ready_write = os.pipe()

    def forwarder() -> None:
        workload_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with Network(workload_fd) as workload:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            veth("v0", "eth0", workload)
            configure("v0")
            held = socket.socket()  # noqa: F841  # born in F: holds it, as a namespace descriptor would
            with workload.inside():
                configure("eth0", "198.18.0.1/32")
                add_route("default", oif=socket.if_nametoindex("eth0"))
            syscalls.setns(workload_fd, syscalls.CLONE_NEWNET)  # like the real one: not in F, only holding it
            os.write(ready_write, b"x")
            signal.pause()

    pid = fork(forwarder)
    assert os.read(ready_read, 1) == b"x"
    assert "eth0" in _links()
    end(pid)
    assert eventually(lambda: "eth0" not in _links())
    with open("/proc/self/net/route") as file:
        assert len(file.readlines()) == 1  # the heading
    os.close(ready_read)
    os.close(ready_write)


@in_own_namespaces
def test_sysctls_are_those_of_the_namespace_of_who_opens_the_file() -> None:
    """Falls: the builder could not set F's and W's sysctls one after the other through one /proc."""
    before = sysctl("net/ipv4/ip_default_ttl")
    with Network() as other:
        with other.inside():
            assert sysctl("net/ipv4/ip_default_ttl", "77") == "77"
        assert sysctl("net/ipv4/ip_default_ttl") == before != "77"


@in_own_namespaces
def test_an_interface_without_address_generation_has_no_link_local_address() -> None:
    """addr_gen_mode 1. Falls: F and W would solicit neighbours and routers on their own, over the cable."""
    with Network() as other:
        for name, value in (("default/addr_gen_mode", "1"), ("default/accept_dad", "0")):
            sysctl(f"net/ipv6/conf/{name}", value)
        veth("quiet", "loud", other)
        configure("quiet")
        with other.inside():
            configure("loud")
            assert eventually(lambda: any(line.endswith("loud") for line in _addresses6()))
        assert [line for line in _addresses6() if line.endswith("quiet")] == []


def _links() -> list[str]:
    with open("/proc/self/net/dev") as file:
        return [line.partition(":")[0].strip() for line in file.readlines()[2:]]


def _addresses6() -> list[str]:
    with open("/proc/self/net/if_inet6") as file:
        return file.read().splitlines()
