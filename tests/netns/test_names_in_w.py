"""DNS as a program in W meets it: whatever resolver it asks, by UDP, by TCP, or on a loopback address of its own."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.rdatatype
import pytest
from ground.child import in_own_namespaces
from ground.grafts import Graft, graft
from ground.network import OTHER, WEB, WEB6, internet

from netns_graft.linux import syscalls

V4, V6 = socket.AF_INET, socket.AF_INET6
SYNTHETIC4, SYNTHETIC6 = "198.1", "fd6e:6574:6772:"
ANYWHERE = ["8.8.8.8", "192.0.2.53", "2001:4860:4860::8888"]


def question(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind).to_wire()


def addresses(reply: bytes) -> list[str]:
    return [
        record.to_text()
        for answer in dns.message.from_wire(reply).answer
        if answer.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for record in answer
    ]


def ask(it: Graft, server: str, data: bytes) -> bytes:
    """By UDP, on a connected socket: an answer from another address would never arrive."""
    with it.socket(V6 if ":" in server else V4, socket.SOCK_DGRAM) as sock:
        sock.connect((server, 53))
        sock.send(data)
        return sock.recv(4096)


def ask_by_tcp(it: Graft, server: str, *questions: bytes) -> list[bytes]:
    """On one connection."""
    with it.connect(server, 53) as sock:
        for data in questions:
            sock.sendall(struct.pack("!H", len(data)) + data)
        return [_exactly(sock, struct.unpack("!H", _exactly(sock, 2))[0]) for _ in questions]


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "the end of file instead of an answer"
        data += part
    return data


@contextmanager
def hosts_file(tmp_path: Path, text: str) -> Iterator[None]:
    """Our own /etc/hosts and an empty resolv.conf, for the forwarder that is forked meanwhile."""
    for name, content in (("hosts", text), ("resolv.conf", "nameserver 192.0.2.1\noptions timeout:1 attempts:1\n")):
        file = tmp_path / name
        file.write_text(content)
        syscalls.mount(str(file), os.path.realpath(f"/etc/{name}"), "", syscalls.MS_BIND)
    try:
        yield
    finally:
        for name in ("hosts", "resolv.conf"):
            syscalls.umount(os.path.realpath(f"/etc/{name}"))


class TestSynthetic:
    @pytest.mark.parametrize("server", ANYWHERE)
    @in_own_namespaces
    def test_any_resolver_address_answers_by_udp(self, server: str) -> None:
        with graft(dns="synthetic") as it:
            [address] = addresses(ask(it, server, question("example.com")))
            assert address.startswith(SYNTHETIC4)
            [address6] = addresses(ask(it, server, question("example.com", "AAAA")))
            assert address6.startswith(SYNTHETIC6)
            flow = it.flow()
        assert (flow["protocol"], flow["outcome"], flow["verdict"]) == ("dns", "ok", "allow")
        assert flow["destination"]["host"] == "example.com" and flow["destination"]["host_source"] == "dns"
        assert (flow["destination"]["address"], flow["destination"]["port"]) == (server, 53)
        assert flow["process"]["pid"] == os.getpid()
        assert flow["bytes_sent"] > 0 and flow["bytes_received"] > 0

    @pytest.mark.parametrize("hold", [True, False])
    @pytest.mark.parametrize("server", ANYWHERE[1:])
    @in_own_namespaces
    def test_and_by_tcp(self, server: str, hold: bool) -> None:
        with graft(dns="synthetic", hold=hold) as it:
            replies = ask_by_tcp(it, server, question("one.example"), question("two.example"), question("one.example"))
            one, two, again = (addresses(reply) for reply in replies)
            flows = [it.flow() for _ in replies]
            tally = it.finish()
            assert it.rest() == []  # the connection itself is no flow
        assert one == again != two and tally["total"] == 0
        assert [flow["destination"]["host"] for flow in flows] == ["one.example", "two.example", "one.example"]
        assert {flow["process"]["pid"] for flow in flows} == {os.getpid()}

    @pytest.mark.parametrize("address", ["127.0.0.53", "127.0.0.1", "::1"])
    @in_own_namespaces
    def test_a_resolver_on_the_loopback_of_w(self, address: str) -> None:
        """As systemd-resolved's, which the host's resolv.conf names. By UDP and TCP; the process is known too."""
        with graft(dns="synthetic", loopback_resolvers=["127.0.0.53", "127.0.0.1", "::1"]) as it:
            [by_udp] = addresses(ask(it, address, question("example.com")))
            [by_tcp] = addresses(ask_by_tcp(it, address, question("example.com"))[0])
            flows = it.flow(), it.flow()
        assert by_udp == by_tcp
        for flow in flows:
            assert flow["process"]["pid"] == os.getpid()
            assert flow["destination"]["address"] == address == flow["source"]["address"].replace("127.0.0.1", address)

    @in_own_namespaces
    def test_an_unconnected_socket_has_its_process_too(self) -> None:
        """How glibc's and most other resolvers' sockets look when they ask several servers."""
        with graft(dns="synthetic") as it, it.socket(V4, socket.SOCK_DGRAM) as sock:
            for server in ("8.8.8.8", "9.9.9.9"):
                sock.sendto(question("example.com"), (server, 53))
                _, peer = sock.recvfrom(4096)
                assert peer == (server, 53)
                flow = it.flow()
                assert flow["process"]["pid"] == os.getpid()
                assert flow["source"]["port"] == sock.getsockname()[1]

    @in_own_namespaces
    def test_a_connection_to_a_name(self, tmp_path: Path) -> None:
        """The name is resolved on the host when it is dialled; the record says all three."""
        with internet() as inet, hosts_file(tmp_path, f"{WEB} web.example\n"), graft(dns="synthetic") as it:
            [address] = addresses(ask(it, "8.8.8.8", question("web.example")))
            it.flow()
            with inet.listener(WEB, 80) as listener, it.connect(address, 80) as sock, listener.accept()[0] as served:
                served.sendall(b"hello")
                assert sock.recv(10) == b"hello"
            flow = it.flow()
        assert flow["destination"]["host"] == "web.example" and flow["destination"]["host_source"] == "synthetic"
        assert flow["destination"]["address"] == address and flow["destination"]["resolved"] == WEB
        assert flow["outcome"] == "ok"

    @in_own_namespaces
    def test_rules_by_name(self, tmp_path: Path) -> None:
        """The name counts, not the address that it shares with another."""
        only_good = graft(("allow", "good.example"), default="deny", dns="synthetic")
        file = hosts_file(tmp_path, f"{WEB} good.example bad.example\n")
        with internet() as inet, file, only_good as it, inet.listener(WEB, 80):
            names = ("good.example", "bad.example")
            good, bad = (addresses(ask(it, "8.8.8.8", question(name)))[0] for name in names)
            assert it.refusal(good, 80)[0] == 0
            assert it.refusal(bad, 80)[0] != 0
            assert it.refusal(WEB, 80)[0] != 0
            it.finish()
            flows = {flow["destination"]["host"] or "bare": flow for flow in it.rest() if flow["protocol"] == "tcp"}
        assert {name: flow["verdict"] for name, flow in flows.items()} == {
            "good.example": "allow", "bad.example": "deny", "bare": "deny"
        }  # fmt: skip

    @in_own_namespaces
    def test_a_name_that_leads_back_to_the_host(self, tmp_path: Path) -> None:
        with hosts_file(tmp_path, "127.0.0.1 rebind.example\n"), graft(dns="synthetic") as it:
            with socket.create_server(("127.0.0.1", 8085)) as listener:
                [address] = addresses(ask(it, "8.8.8.8", question("rebind.example")))
                it.flow()
                assert it.refusal(address, 8085)[0] != 0
                listener.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listener.accept()
            flow = it.flow()
        assert (flow["outcome"], flow["rule"]) == ("denied", "protected:loopback")

    @pytest.mark.parametrize("data", [b"", b"x", bytes(12), b"\xff" * 300, question("example.com")[:-3]])
    @in_own_namespaces
    def test_nonsense_is_survived(self, data: bytes) -> None:
        with graft(dns="synthetic") as it:
            with it.socket(V4, socket.SOCK_DGRAM) as sock:
                sock.sendto(data, ("8.8.8.8", 53))
            with it.connect("8.8.8.8", 53) as sock:
                sock.sendall(struct.pack("!H", len(data)) + data)
            assert addresses(ask(it, "8.8.8.8", question("example.com")))

    @in_own_namespaces
    def test_a_connection_that_stays_silent_stops_nobody(self) -> None:
        with graft(dns="synthetic") as it, it.connect("8.8.8.8", 53) as silent:
            silent.sendall(b"\0")
            assert addresses(ask_by_tcp(it, "8.8.8.8", question("example.com"))[0])


class TestForward:
    @in_own_namespaces
    def test_the_hosts_resolver_is_asked(self, tmp_path: Path) -> None:
        """Whatever the program asked; its answer comes back, and teaches the record the name."""
        with internet() as inet, hosts_file(tmp_path, ""), graft(dns="forward") as it:
            resolver = inet.socket(V4, socket.SOCK_DGRAM)
            resolver.bind(("192.0.2.1", 53))
            with resolver, it.socket(V4, socket.SOCK_DGRAM) as program, inet.listener(OTHER, 80) as listener:
                program.connect(("8.8.8.8", 53))
                program.send(question("other.example"))
                data, peer = resolver.recvfrom(4096)
                reply = dns.message.make_response(dns.message.from_wire(data))
                reply.answer.append(dns.rrset.from_text("other.example.", 60, "IN", "A", OTHER))
                resolver.sendto(reply.to_wire(), peer)
                assert peer[0] == "192.0.2.10"
                assert addresses(program.recv(4096)) == [OTHER]
                asked = it.flow()
                with it.connect(OTHER, 80):
                    listener.accept()[0].close()
                flow = it.flow()
        assert (asked["upstream"], asked["destination"]["host"]) == ("192.0.2.1:53", "other.example")
        assert (flow["destination"]["host"], flow["destination"]["host_source"]) == ("other.example", "dns")

    @in_own_namespaces
    def test_the_hosts_file(self, tmp_path: Path) -> None:
        with hosts_file(tmp_path, f"{WEB} web.example\n{WEB6} web.example\n"), graft(dns="forward") as it:
            assert addresses(ask(it, "9.9.9.9", question("web.example"))) == [WEB]
            assert addresses(ask(it, "9.9.9.9", question("web.example", "AAAA"))) == [WEB6]


class TestOff:
    @in_own_namespaces
    def test_port_53_is_a_port_like_any_other(self) -> None:
        """By TCP a destination; by UDP closed."""
        with internet() as inet, graft(dns="off") as it, inet.listener(WEB, 53) as listener:
            with it.connect(WEB, 53), listener.accept()[0] as served:
                served.sendall(b"x")
            assert it.flow()["protocol"] == "tcp"
            with it.socket(V4, socket.SOCK_DGRAM) as sock:
                sock.connect((WEB, 53))
                sock.send(b"?")
                with pytest.raises(ConnectionRefusedError):
                    sock.recv(10)
