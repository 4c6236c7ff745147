"""A flow's life through a real forwarder: its record, the truth that connect() tells, and its end."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import eventually, in_own_namespaces, wait
from ground.frames import ACK, FIN, PSH, Seen, take_apart, tcp
from ground.grafts import Graft, graft
from ground.network import (
    FAR_UNREACHABLE,
    HOST,
    HOST6,
    OTHER,
    PROHIBITED,
    PROHIBITED6,
    SILENT,
    UNREACHABLE,
    UNREACHABLE6,
    WEB,
    WEB6,
    Network,
    internet,
    sysctl,
)

from netns_graft.forwarder import packets
from netns_graft.linux import proc, syscalls
from netns_graft.linux.cable import WORKLOAD_V4, WORKLOAD_V6

AT_ONCE = 0.9  # seconds: before a SYN would be sent again
LINGER_RESET = struct.pack("ii", 1, 0)
BOTH = pytest.mark.parametrize("web", [WEB, WEB6], ids=["IPv4", "IPv6"])
BOTH_ORDERS = pytest.mark.parametrize("hold", [True, False], ids=["held", "accept-first"])


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.close()


def accept(listener: socket.socket) -> socket.socket:
    served, _ = listener.accept()
    served.settimeout(5)
    return served


def nobody_called(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


class TestRecord:
    @BOTH
    @BOTH_ORDERS
    @in_own_namespaces
    def test_of_an_ordinary_flow(self, web: str, hold: bool) -> None:
        with internet() as inet, graft(hold=hold) as it, inet.listener(web, 443) as listener:
            with it.connect(web, 443) as program, accept(listener) as served:
                port = program.getsockname()[1]
                assert served.getpeername()[0] == (HOST6 if ":" in web else HOST)  # dialled from the host's namespace
                program.sendall(b"question")
                assert served.recv(100) == b"question"
                served.sendall(b"the answer")
                assert program.recv(100) == b"the answer"
            flow = it.flow()
            tally = it.finish()
        own = WORKLOAD_V6 if ":" in web else WORKLOAD_V4
        assert flow["workload"] == f"test-{os.getpid()}"
        assert flow["source"] == {"address": own, "port": port}
        assert (flow["destination"]["address"], flow["destination"]["port"]) == (web, 443)
        assert {flow["destination"][known] for known in ("host", "host_source", "resolved")} == {None}
        assert flow["process"]["pid"] == os.getpid()
        assert flow["process"]["exe"] == proc.exe(os.getpid())
        assert flow["process"]["argv"] == list(proc.argv(os.getpid()))
        assert flow["process"]["uid"] == os.getuid()
        assert flow["attribution"]["method"] == "sock_diag" and flow["attribution"]["nat"] == []
        assert (flow["verdict"], flow["rule"], flow["upstream"]) == ("allow", "default", "direct")
        assert (flow["bytes_sent"], flow["bytes_received"]) == (8, 10)
        assert (flow["protocol"], flow["outcome"], flow["error"]) == ("tcp", "ok", None)
        assert 0 < flow["duration"] < 5
        assert tally["total"] == 1

    @in_own_namespaces
    def test_each_flow_has_exactly_one(self) -> None:
        with internet() as inet, graft(("deny", OTHER)) as it, inet.listener(WEB, 80) as listener:
            for _ in range(3):
                it.connect(WEB, 80).close()
                accept(listener).close()
                it.refusal(OTHER, 80)
                it.refusal(WEB, 81)
                it.refusal(UNREACHABLE, 80)
            flows = [it.flow() for _ in range(12)]
            tally = it.finish()
            assert it.rest() == []
        assert len({flow["id"] for flow in flows}) == 12 == tally["total"]
        counts = Counter(flow["outcome"] for flow in flows)
        assert counts == {"denied": 3, "ok": 3, "refused": 3, "unreachable": 3}
        assert tally["denied"] == 3

    @in_own_namespaces
    def test_the_very_first_flow_has_its_process_and_its_workload(self) -> None:
        """However early the program is."""
        with internet(), graft() as it:
            it.refusal(WEB, 80)
            flow = it.flow()
        assert flow["workload"] == f"test-{os.getpid()}" and flow["process"]["pid"] == os.getpid()


class TestTheTruth:
    """connect() fails in the program as it would have failed on the host."""

    CASES = [  # noqa: RUF012
        (WEB, errno.ECONNREFUSED, "refused"), (WEB6, errno.ECONNREFUSED, "refused"),
        (UNREACHABLE, errno.EHOSTUNREACH, "unreachable"), (UNREACHABLE6, errno.EHOSTUNREACH, "unreachable"),
        (FAR_UNREACHABLE, errno.EHOSTUNREACH, "unreachable"),
        (PROHIBITED, errno.EHOSTUNREACH, "unreachable"),  # nothing on an IPv4 wire says EACCES
        (PROHIBITED6, errno.EACCES, "unreachable"),
    ]  # fmt: skip

    @pytest.mark.parametrize(("address", "number", "outcome"), CASES)
    @in_own_namespaces
    def test_at_once(self, address: str, number: int, outcome: str) -> None:
        with internet(), graft() as it:
            got, seconds = it.refusal(address, 80)
            flow = it.flow()
        assert errno.errorcode[got] == errno.errorcode[number]
        assert seconds < AT_ONCE
        assert (flow["verdict"], flow["outcome"]) == ("allow", outcome)
        assert flow["error"] and flow["upstream"] == "direct"
        assert flow["process"]["pid"] == os.getpid()

    @pytest.mark.parametrize("address", [WEB, WEB6])
    @in_own_namespaces
    def test_a_host_without_any_route(self, address: str) -> None:
        """The test's own namespace as it is: lo, and nothing else."""
        with graft() as it:
            got, seconds = it.refusal(address, 80)
            assert it.flow()["outcome"] == "unreachable"
        assert (got, seconds < AT_ONCE) == (errno.ENETUNREACH, True)

    @in_own_namespaces
    def test_nothing_is_answered_before_the_destination_has(self) -> None:
        """A destination that keeps silent: the program waits, as it would on the host. Its patience is its own."""
        with internet(), graft() as it:
            with it.socket() as program:
                program.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    program.connect((SILENT, 80))
                assert program.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 2  # SYN_SENT
            it.finish()
            [flow] = it.rest()
        assert flow["outcome"] == "workload-gone" and flow["verdict"] == "allow"

    @BOTH
    @in_own_namespaces
    def test_accept_first_resets_instead(self, web: str) -> None:
        with internet(), graft(hold=False) as it:
            with it.connect(web, 80) as program, pytest.raises(ConnectionResetError):
                program.recv(1)
            assert it.flow()["outcome"] == "refused"


class TestDenied:
    @pytest.mark.parametrize(("address", "number"), [(WEB, errno.EHOSTUNREACH), (WEB6, errno.EACCES)])
    @in_own_namespaces
    def test_at_once_and_nobody_is_called(self, address: str, number: int) -> None:
        with internet() as inet, graft(default="deny") as it, inet.listener(address, 80) as listener:
            got, seconds = it.refusal(address, 80)
            flow = it.flow()
            assert nobody_called(listener)
        assert errno.errorcode[got] == errno.errorcode[number] and seconds < AT_ONCE
        assert (flow["verdict"], flow["rule"], flow["outcome"]) == ("deny", "default", "denied")
        assert (flow["bytes_sent"], flow["bytes_received"], flow["upstream"], flow["error"]) == (0, 0, None, None)
        assert flow["process"]["pid"] == os.getpid()

    @in_own_namespaces
    def test_the_first_rule_that_matches(self) -> None:
        with internet() as inet, graft(("allow", f"{WEB}:80"), ("deny", WEB), default="allow") as it:
            with inet.listener(WEB, 80), inet.listener(WEB, 81) as closed, inet.listener(OTHER, 81):
                assert it.refusal(WEB, 80)[0] == 0
                assert it.refusal(WEB, 81)[0] == errno.EHOSTUNREACH
                assert it.refusal(OTHER, 81)[0] == 0
                assert nobody_called(closed)
            rules = {flow["rule"] for flow in (it.flow(), it.flow(), it.flow())}
        assert rules == {f"--allow {WEB}:80", f"--deny {WEB}", "default"}

    @pytest.mark.parametrize(("address", "rule"), [
        (HOST, "host"), (HOST6, "host"), ("169.254.169.254", "link-local"), ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"), ("198.18.77.7", "synthetic"),
    ])  # fmt: skip
    @in_own_namespaces
    def test_what_is_protected_whatever_the_default(self, address: str, rule: str) -> None:
        """Nobody on the host hears of it."""
        with internet(), graft() as it:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.create_server(("::" if ":" in address else "", 8080), family=family) as listener:
                with it.socket(family) as program:
                    link = it.link if address.startswith("fe80") else 0
                    end = (address, 8080, 0, link) if ":" in address else (address, 8080)
                    with pytest.raises(OSError):
                        program.connect(end)
                assert nobody_called(listener)
            flow = it.flow()
        assert (flow["outcome"], flow["rule"]) == ("denied", f"protected:{rule}")

    @in_own_namespaces
    def test_the_hosts_own_address_when_a_rule_names_it(self) -> None:
        with internet(), graft(("allow", f"{HOST}:8080")) as it, socket.create_server((HOST, 8080)) as listener:
            with it.connect(HOST, 8080), accept(listener) as served:
                served.sendall(b"hello")
            assert it.flow()["rule"] == f"--allow {HOST}:8080"

    @in_own_namespaces
    def test_accept_first_resets(self) -> None:
        with internet() as inet, graft(default="deny", hold=False) as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program:
                program.setblocking(True)
                with pytest.raises(ConnectionResetError):
                    program.recv(1)
            assert it.flow()["outcome"] == "denied"
            assert nobody_called(listener)


class TestStream:
    @BOTH_ORDERS
    @in_own_namespaces
    def test_half_close_of_the_program(self, hold: bool) -> None:
        with internet() as inet, graft(hold=hold) as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program, accept(listener) as served:
                program.sendall(b"all")
                program.shutdown(socket.SHUT_WR)
                assert served.recv(10) == b"all" and served.recv(1) == b""
                served.sendall(b"answer after the end")
                assert program.recv(100) == b"answer after the end"
            assert it.flow()["outcome"] == "ok"

    @BOTH_ORDERS
    @in_own_namespaces
    def test_half_close_of_the_destination(self, hold: bool) -> None:
        with internet() as inet, graft(hold=hold) as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program, accept(listener) as served:
                served.shutdown(socket.SHUT_WR)
                assert program.recv(1) == b""
                program.sendall(b"still here")
                assert served.recv(100) == b"still here"
            assert it.flow()["outcome"] == "ok"

    @BOTH
    @in_own_namespaces
    def test_reset_by_the_program(self, web: str) -> None:
        with internet() as inet, graft() as it, inet.listener(web, 80) as listener:
            program = it.connect(web, 80)
            with accept(listener) as served:
                reset(program)
                with pytest.raises(ConnectionResetError):
                    served.recv(1)
            assert it.flow()["outcome"] == "reset"

    @BOTH
    @in_own_namespaces
    def test_reset_by_the_destination(self, web: str) -> None:
        with internet() as inet, graft() as it, inet.listener(web, 80) as listener, it.connect(web, 80) as program:
            served = accept(listener)
            served.sendall(b"last words")
            reset(served)
            assert program.recv(100) == b"last words"
            with pytest.raises(ConnectionResetError):
                program.recv(1)
            assert it.flow()["outcome"] == "reset"

    @in_own_namespaces
    def test_a_destination_that_speaks_first_and_closes(self) -> None:
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program:
                with accept(listener) as served:
                    served.sendall(b"220 hello\r\n")
                assert program.recv(100) == b"220 hello\r\n" and program.recv(1) == b""
            flow = it.flow()
        assert (flow["outcome"], flow["bytes_received"]) == ("ok", 11)

    @BOTH
    @in_own_namespaces
    def test_many_bytes_both_ways_at_once(self, web: str) -> None:
        size = 6_000_000
        up, down = os.urandom(size), os.urandom(size)
        heard: dict[str, bytes] = {}

        def converse(name: str, sock: socket.socket, say: bytes) -> None:
            sender = threading.Thread(target=lambda: (sock.sendall(say), sock.shutdown(socket.SHUT_WR)))
            sender.start()
            digest = hashlib.sha256()
            while part := sock.recv(1 << 18):
                digest.update(part)
            sender.join()
            heard[name] = digest.digest()

        with internet() as inet, graft() as it, inet.listener(web, 80) as listener:
            with it.connect(web, 80) as program, accept(listener) as served:
                other = threading.Thread(target=converse, args=("up", served, down))
                other.start()
                converse("down", program, up)
                other.join()
            flow = it.flow()
        assert heard == {"up": hashlib.sha256(up).digest(), "down": hashlib.sha256(down).digest()}
        assert (flow["bytes_sent"], flow["bytes_received"], flow["outcome"]) == (size, size, "ok")

    @in_own_namespaces
    def test_small_writes_are_not_saved_up(self) -> None:
        """TCP_NODELAY on both sides: 200 exchanges of a byte take no 40 ms each."""
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program, accept(listener) as served:
                for sock in (program, served):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                begin = time.monotonic()
                for _ in range(200):
                    program.send(b"a")
                    program.send(b"b")
                    heard = b""
                    while len(heard) < 2:
                        heard += served.recv(2)
                    served.send(b"c")
                    assert program.recv(1) == b"c"
                assert time.monotonic() - begin < 200 * 0.02
            it.flow()

    @in_own_namespaces
    def test_a_hundred_at_once(self) -> None:
        with internet() as inet, graft() as it, inet.listener(WEB, 80, backlog=128) as listener:
            programs = [it.socket() for _ in range(100)]
            for program in programs:
                program.setblocking(False)
                program.connect_ex((WEB, 80))
            served = [accept(listener) for _ in programs]
            for number, sock in enumerate(served):
                sock.sendall(b"%d" % number)
            heard = set()
            for program in programs:
                program.settimeout(5)
                heard.add(int(program.recv(10)))
            for sock in (*programs, *served):
                sock.close()
            assert heard == set(range(100))
            assert {it.flow()["outcome"] for _ in programs} == {"ok"}
            assert it.finish()["total"] == 100


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN], ids=["ack", "data", "fin"])
@in_own_namespaces
def test_what_belongs_to_no_connection_is_not_answered(flags: int) -> None:
    """A reset would be the end of a connection that is just coming to be, see linux/gate.py."""
    with internet(), graft() as it, it.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw_sock:
        ends = socket.inet_aton(WORKLOAD_V4), 40000, socket.inet_aton(WEB), 80
        raw_sock.sendto(tcp(*ends, 1000, 2000, flags, data=b"x"), (WEB, 0))
        raw_sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            raw_sock.recv(100)
        assert it.refusal(WEB, 81)[0] == errno.ECONNREFUSED  # and this is heard by the same socket
        assert raw_sock.recv(100)


class TestHandshake:
    @in_own_namespaces
    def test_a_syn_sent_again_while_the_destination_thinks(self) -> None:
        """One flow, one record, one dial."""
        with internet() as inet, graft() as it, Wire(inet, "i0") as far, Wire(it.workload, "eth0") as near:
            with it.socket() as program:
                program.setblocking(False)
                program.connect_ex((SILENT, 80))
                syn = near.syn()
                for _ in range(3):
                    near.send(syn)
                assert take_apart(far.syn()[10:]).target == SILENT
                assert it.refusal(WEB, 80)[0] == errno.ECONNREFUSED  # it has seen all three before this one
                it.flow()
                it.finish()
            assert [flow["destination"]["address"] for flow in it.rest()] == [SILENT]
            assert {take_apart(frame[10:]).target for frame in far.syns_so_far()} == {WEB}

    @in_own_namespaces
    def test_a_syn_sent_again_before_its_refusal_came(self) -> None:
        """The forwarder was slow, or the program's kernel did not take the first answer: one more answer, no more
        records.
        """
        with internet(), graft(default="deny") as it, Wire(it.workload, "eth0") as near:
            with it.socket() as program:
                os.kill(it.pid, signal.SIGSTOP)
                program.setblocking(False)
                program.connect_ex((WEB, 80))
                near.send(near.syn())
                os.kill(it.pid, signal.SIGCONT)
                it.flow()
            assert it.refusal(WEB, 81)[0] == errno.EHOSTUNREACH
            assert it.flow()["destination"]["port"] == 81
            assert it.finish()["total"] == 2

    @in_own_namespaces
    def test_a_syn_sent_again_just_before_it_was_let_in(self) -> None:
        """Nobody is called twice."""
        with internet() as inet, graft() as it, Wire(it.workload, "eth0") as near, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program, accept(listener) as served:
                near.send(near.syn())
                assert it.refusal(WEB, 81)[0] == errno.ECONNREFUSED  # it has seen that one before this one
                assert it.flow()["outcome"] == "refused"
                assert nobody_called(listener)
                program.sendall(b"x")
                assert served.recv(1) == b"x"
            assert it.flow()["outcome"] == "ok"
            assert it.finish()["total"] == 2

    @in_own_namespaces
    def test_a_refusal_that_the_kernel_did_not_take_is_given_again(self) -> None:
        """connect() goes on in the program, and asks again a second later."""
        with internet(), graft(default="deny") as it, Wire(it.workload, "eth0") as near, it.socket() as program:
            program.setblocking(False)
            program.connect_ex((WEB, 80))
            syn = near.syn()
            it.flow()
            first = near.answer()
            near.send(syn)
            assert first.protocol == near.answer().protocol == socket.IPPROTO_ICMP
            assert it.finish()["total"] == 1

    @in_own_namespaces
    def test_a_program_that_leaves_before_the_destination_answers(self) -> None:
        with internet(), graft() as it:
            program = it.socket()
            program.setblocking(False)
            program.connect_ex((SILENT, 80))
            program.close()
            assert it.refusal(WEB, 80)[0] == errno.ECONNREFUSED  # the next one does not wait for it
            assert it.flow()["destination"]["address"] == WEB
            it.finish()
            [flow] = it.rest()
        assert (flow["destination"]["address"], flow["outcome"]) == (SILENT, "workload-gone")

    @in_own_namespaces
    def test_a_program_that_leaves_between_the_answer_and_the_handshake(self) -> None:
        """Its kernel resets what F's kernel answers. The flow is given up after a while, and the dial with it."""
        patience = patched(packets, "ACCEPT_GRACE", 0.1)
        with internet() as inet, inet.listener(WEB, 80) as listener, patience, graft() as it:
            os.kill(it.pid, signal.SIGSTOP)
            program = it.socket()
            program.setblocking(False)
            program.connect_ex((WEB, 80))
            program.close()
            os.kill(it.pid, signal.SIGCONT)
            with accept(listener) as served, pytest.raises(ConnectionResetError):
                served.recv(1)
            assert it.flow()["outcome"] == "workload-gone"

    @in_own_namespaces
    def test_a_port_that_is_used_again_at_once(self) -> None:
        """The same four numbers, another connection: a program gave up and tried again from its port. That is a flow
        of its own, and must not be answered with the first SYN's sequence number.
        """
        with internet() as inet, inet.listener(WEB, 80) as listener, graft() as it:
            os.kill(it.pid, signal.SIGSTOP)  # two SYNs before it looks
            for last in (False, True):
                program = it.socket()
                program.bind(("", 5555))
                program.setblocking(False)
                program.connect_ex((WEB, 80))
                if not last:
                    program.close()
            os.kill(it.pid, signal.SIGCONT)
            program.settimeout(AT_ONCE)
            poll = select.poll()
            poll.register(program, select.POLLOUT)
            assert poll.poll(AT_ONCE * 1000), "no answer that the second would take"
            program.sendall(b"second")
            program.close()
            heard = []
            for _ in range(2):
                with accept(listener) as served:
                    try:
                        heard.append(served.recv(10))
                    except ConnectionResetError:
                        heard.append(b"reset")
            assert sorted(heard) == [b"reset", b"second"]
            assert sorted(it.flow()["outcome"] for _ in range(2)) == ["ok", "workload-gone"]

    @pytest.mark.parametrize("size", [10, 3000, 40_000])
    @in_own_namespaces
    def test_a_syn_that_brings_data(self, size: int) -> None:
        """TCP Fast Open without a cookie: as much as a segment holds. It is put back whole, nothing comes twice."""
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener, it.socket() as program:
            with it.workload.inside():
                sysctl("net/ipv4/tcp_fastopen", "5")
            data, heard = os.urandom(size), b""
            sent = program.sendto(data, socket.MSG_FASTOPEN, (WEB, 80))
            program.sendall(data[sent:])
            program.shutdown(socket.SHUT_WR)
            with accept(listener) as served:
                while part := served.recv(65536):
                    heard += part
            assert heard == data
            flow = it.flow()
        assert (flow["outcome"], flow["bytes_sent"]) == ("ok", size)

    @in_own_namespaces
    def test_a_forged_mark_is_judged_like_any_other(self) -> None:
        """A workload with CAP_NET_RAW sees the mark on its own eth0 and uses it: its handshake is completed without us,
        and ends at the verdict all the same. Nobody is called.
        """
        with internet() as inet, graft(("deny", f"{WEB}:81")) as it, Wire(it.workload, "eth0") as own:
            allowed, forbidden, program = inet.listener(WEB, 80), inet.listener(WEB, 81), it.socket()
            with allowed, forbidden, program:
                with it.connect(WEB, 80):
                    plain, marked = own.syn(), own.syn()
                    mark = marked[16:22]
                    assert mark != plain[16:22] and marked[22:] == plain[22:]
                    accept(allowed).close()
                it.flow()
                os.kill(it.pid, signal.SIGSTOP)
                program.setblocking(False)
                program.connect_ex((WEB, 81))
                syn = own.syn()
                own.send(syn[:16] + mark + syn[22:])
                poll = select.poll()
                poll.register(program, select.POLLOUT)
                assert poll.poll(AT_ONCE * 1000)
                assert program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # in, while nobody looked
                os.kill(it.pid, signal.SIGCONT)
                program.settimeout(5)
                with pytest.raises(ConnectionResetError):
                    program.recv(1)
                assert it.flow()["outcome"] == "denied"
                it.finish()
                assert {flow["outcome"] for flow in it.rest()} <= {"denied"}
                assert nobody_called(forbidden)

    @in_own_namespaces
    def test_a_forged_mark_does_not_open_the_listeners_own_port(self) -> None:
        """Nor does asking F for its own addresses: whatever arrives is somebody's destination, judged as such."""
        with internet(), graft() as it:
            for address in ("198.18.0.2", "fd6e:6574:6772::2"):
                assert it.refusal(address, 80)[0] != 0
                assert it.flow()["rule"] == "protected:synthetic"


class Wire:
    """Frames of a link, with a virtio_net_hdr before each, so that one can be put back as it was."""

    def __init__(self, network: Network, link: str) -> None:
        self._sock = network.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        self._sock.bind((link, 3))  # ETH_P_ALL
        self.send = self._sock.send

    def syn(self) -> bytes:
        """The next SYN of a connection that begins."""
        while True:
            frame = self._sock.recv(70_000)
            if frame[22:24] in (b"\x08\0", b"\x86\xdd"):
                seen = take_apart(frame[10:])
                if seen.protocol == socket.IPPROTO_TCP and seen.flags & 0x12 == 2:
                    return frame

    def answer(self) -> Seen:
        """The next packet that came in and belongs to a flow: IPv6 reports group memberships by itself."""
        while True:
            frame, address = self._sock.recvfrom(70_000)
            if address[2] != socket.PACKET_OUTGOING and frame[22:24] in (b"\x08\0", b"\x86\xdd"):
                seen = take_apart(frame[10:])
                if seen.protocol != socket.IPPROTO_HOPOPTS:  # what an MLD report begins with
                    return seen

    def syns_so_far(self) -> list[bytes]:
        self._sock.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.syn())
        except BlockingIOError:
            return found

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sock.close()


@contextmanager
def patched(where: object, name: str, value: object) -> Iterator[None]:
    """For the forwarder that is forked meanwhile."""
    before = getattr(where, name)
    setattr(where, name, value)
    yield
    setattr(where, name, before)


class TestEnd:
    @in_own_namespaces
    def test_two_thousand_connections_and_no_descriptor_more(self) -> None:
        not_closed_to_us = patched(syscalls, "set_not_dumpable", lambda: None)  # its descriptors can be counted
        with internet() as inet, not_closed_to_us, graft() as it, inet.listener(WEB, 80, backlog=64) as listener:

            def one() -> None:
                with it.connect(WEB, 80) as program, accept(listener) as served:
                    program.sendall(b"x")
                    assert served.recv(1) == b"x"
                it.flow()

            for _ in range(100):
                one()
            before = len(os.listdir(f"/proc/{it.pid}/fd"))
            assert before > 5
            for _ in range(2000):
                one()
            # A record comes a moment before the close.
            assert eventually(lambda: len(os.listdir(f"/proc/{it.pid}/fd")) <= before)

    @in_own_namespaces
    def test_the_workload_ends_with_flows_open(self) -> None:
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener:
            with it.connect(WEB, 80) as program, accept(listener) as served:
                program.sendall(b"abc")
                assert served.recv(10) == b"abc"
                tally = it.finish()
                with pytest.raises(ConnectionResetError):
                    served.recv(1)
            [flow] = it.rest()
        assert (flow["outcome"], flow["bytes_sent"]) == ("workload-gone", 3)
        assert tally["total"] == 1

    @in_own_namespaces
    def test_a_killed_forwarder_takes_the_network_with_it(self) -> None:
        """Fail closed, by construction: no cable, no route, and no packet of W's on any wire."""
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener, it.connect(WEB, 80) as program:
            served = accept(listener)
            it.kill()
            with served, pytest.raises(OSError):
                while served.recv(1):
                    pass
                raise ConnectionResetError  # FIN or RST, both are an end
            assert eventually(lambda: _links(it) == {"lo"})
            assert it.refusal(WEB, 80)[0] == errno.ENETUNREACH
            assert it.refusal(WEB6, 80)[0] == errno.ENETUNREACH
            with it.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError):
                sock.sendto(b"x", (WEB, 53))
            program.settimeout(0.2)
            try:
                program.sendall(b"x")
                assert program.recv(1) == b""  # the end, an error, or nothing for ever
            except OSError:
                pass

    @in_own_namespaces
    def test_a_killed_supervisor_ends_everybody_in_the_workload(self) -> None:
        """And what was under way still gets its record."""
        with internet() as inet, graft() as it, inet.listener(WEB, 80) as listener:
            ready_read, ready_write = os.pipe()

            def program() -> None:
                with socket.create_connection((WEB, 80)):
                    os.write(ready_write, b"x")
                    signal.pause()

            pid = it.program(program)
            os.read(ready_read, 1)
            accept(listener).close()
            assert it.hang_up() == 0
            assert wait(pid) == -signal.SIGKILL
            [flow] = it.rest()
            assert flow["process"]["pid"] == pid
            os.close(ready_read)
            os.close(ready_write)


def _links(it: Graft) -> set[str]:
    with it.workload.inside():
        return {name for _, name in socket.if_nameindex() if name in ("lo", "eth0")}
