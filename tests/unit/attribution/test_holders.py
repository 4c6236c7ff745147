"""Which process holds a socket: processes of this test's own, looked for in the order in which they are likely."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import end, eventually, fork, wait

from netns_graft.attribution import roll
from netns_graft.attribution.holders import Holder, HolderFinder
from netns_graft.linux import proc


@pytest.fixture
def finder() -> Iterator[HolderFinder]:
    it = HolderFinder({proc.own_network_namespace()})
    yield it
    it.close()


class Program:
    """A child that opens and closes sockets when told, and says their inodes."""

    def __init__(self, ballast: int = 0) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def work() -> None:
            channel = socket.socket(fileno=os.dup2(theirs.detach(), 3))
            os.closerange(4, 4096)
            kept: list[socket.socket | int] = [os.open("/dev/null", os.O_RDONLY) for _ in range(ballast)]
            socks: dict[int, socket.socket] = {}
            while order := channel.recv(64).decode():
                what, _, number = order.partition(" ")
                if what == "open":
                    sock = socket.socket()
                    socks[sock.fileno()] = sock
                    channel.send(f"{sock.fileno()} {os.fstat(sock.fileno()).st_ino}".encode())
                else:
                    socks.pop(int(number)).close()
                    channel.send(b"closed")
            del kept

        self.pid = fork(work)
        theirs.close()

    def open(self) -> tuple[int, int]:
        """(descriptor, inode)."""
        self._ours.send(b"open")
        fd, inode = self._ours.recv(64).split()
        return int(fd), int(inode)

    def close(self, fd: int) -> None:
        self._ours.send(b"close %d" % fd)
        assert self._ours.recv(64) == b"closed"

    def end(self) -> None:
        self._ours.close()
        end(self.pid)


@contextmanager
def programs(count: int, ballast: int = 0) -> Iterator[list[Program]]:
    made = [Program(ballast) for _ in range(count)]
    try:
        yield made
    finally:
        for program in made:
            program.end()


def find(finder: HolderFinder, inode: int) -> Holder | None:
    return finder.find(inode, proc.own_network_namespace(), time.monotonic())


def test_each_of_several_again_and_again(finder: HolderFinder) -> None:
    with programs(4, ballast=20) as made:
        for _ in range(5):
            for program in made:
                fd, inode = program.open()
                assert find(finder, inode) == (program.pid, fd)
                program.close(fd)


def test_many_connections_of_one_process(finder: HolderFinder) -> None:
    """Descriptors are closed and taken again in every order."""
    with programs(2) as (one, other):
        held = [program.open() for program in (one, other) * 20]
        for turn in range(30):
            program = (one, other)[turn % 2]
            at = (turn * 7) % 20 * 2 + turn % 2
            program.close(held[at][0])
            held[at] = program.open()
            assert find(finder, held[at][1]) == (program.pid, held[at][0])


def test_one_closed_and_one_opened_leaves_the_number_as_it_was(finder: HolderFinder) -> None:
    with programs(2) as (one, other):
        fd, inode = one.open()
        assert find(finder, inode) == (one.pid, fd)
        other_fd, other_inode = other.open()
        assert find(finder, other_inode) == (other.pid, other_fd)  # `one` was looked at in vain
        one.close(fd)
        fd, inode = one.open()
        assert find(finder, inode) == (one.pid, fd)


def test_a_young_process_is_found_without_a_scan(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    find(finder, 1)
    monkeypatch.setattr(finder, "_find_anywhere", lambda *_: pytest.fail("every descriptor was looked at"))
    for _ in range(10):
        with programs(1) as (program,):
            fd, inode = program.open()
            assert find(finder, inode) == (program.pid, fd)


def test_a_socket_that_is_gone_is_nobodys(finder: HolderFinder) -> None:
    with programs(1) as (program,):
        fd, inode = program.open()
        assert find(finder, inode) is not None
        program.close(fd)
        assert find(finder, inode) is None


def test_searches_in_vain_are_shared(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows that arrived before a search that found nobody began do not search again."""
    since = time.monotonic()
    own = proc.own_network_namespace()
    assert finder.find(1, own, since) is None
    scanned: list[object] = []
    monkeypatch.setattr(finder, "_find_among_strangers", scanned.append)
    assert finder.find(2, own, since) is None
    assert scanned == []
    assert finder.find(2, own, time.monotonic()) is None
    assert len(scanned) == 1


def test_a_full_scan_is_remembered(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has seen on its way serves the flows that wait behind the first."""
    with programs(1, ballast=5) as (program,):
        finder.meet()
        held = [program.open() for _ in range(40)]
        for fd, _ in held[1:30:2]:
            program.close(fd)  # holes: no number is likely
        fd, inode = held[0]
        assert find(finder, inode) == (program.pid, fd)
        monkeypatch.setattr(finder, "_find_awake", lambda _link: pytest.fail("it was not remembered"))
        fd, inode = held[2]
        assert find(finder, inode) == (program.pid, fd)


def test_who_has_ended_is_forgotten(finder: HolderFinder) -> None:
    with programs(3) as made:
        for program in made:
            assert find(finder, program.open()[1]) is not None
        assert {program.pid for program in made} <= set(finder._roll.pids())
    finder.sweep()
    assert not {program.pid for program in made} & set(finder._roll.pids())


def test_no_more_are_kept_open_than_the_limit(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder._roll, "limit", 4)
    with programs(8) as made:
        for _ in range(2):
            for program in made:
                fd, inode = program.open()
                assert find(finder, inode) == (program.pid, fd)
                assert finder.count() <= 4


def test_every_holder(finder: HolderFinder) -> None:
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        pids = [fork(signal.pause) for _ in range(2)]
        found: dict[int, list[Holder]] = {inode: []}
        for _ in finder.list_holders(found):
            pass
        assert {holder.pid for holder in found[inode]} >= {os.getpid(), *pids}
        assert all(holder.fd == sock.fileno() for holder in found[inode])
        for pid in pids:
            end(pid)


def test_a_process_in_another_namespace_that_holds_it_is_found_at_last() -> None:
    elsewhere = HolderFinder({1})
    with programs(1) as (program,):
        fd, inode = program.open()
        assert elsewhere.find(inode, 1, time.monotonic()) == (program.pid, fd)
    elsewhere.close()


def test_whoever_ran_is_looked_at_and_nobody_else(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    with programs(12) as made:
        for program in made:
            assert find(finder, program.open()[1]) is not None
        ours = {program.pid for program in made}
        assert eventually(lambda: ours.isdisjoint([known.pid for known in finder._roll.awake()]))
        looks: list[int] = []
        look = finder._look_at
        monkeypatch.setattr(finder, "_look_at", lambda known, link: (looks.append(known.pid), look(known, link))[1])
        monkeypatch.setattr(finder, "_find_young", lambda *_: pytest.fail("not found among those who ran"))
        for program in (made[3], made[7], made[3], made[0]):
            fd, inode = program.open()
            known = finder._roll.get(program.pid)
            assert known is not None
            # It is told when the process has gone to sleep.
            assert eventually(lambda it=known: time.clock_gettime_ns(it.clock) != it.ran)
            assert find(finder, inode) == (program.pid, fd)
        meant = {made[0].pid, made[3].pid, made[7].pid}
        assert meant <= ours & set(looks) <= {*meant, made[-1].pid}  # which may have gone to sleep just now


def test_a_process_whose_cpu_time_does_not_tell_is_found(
    finder: HolderFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told late for one that is running: a hint, and no more."""
    with programs(6) as made:
        for program in made:
            assert find(finder, program.open()[1]) is not None
        for known in finder._roll:
            known.ran = 1
        monkeypatch.setattr(roll.time, "clock_gettime_ns", lambda _clock: 1)
        monkeypatch.setattr(finder, "_find_anywhere", lambda *_: pytest.fail("every descriptor was looked at"))
        for program in made:
            fd, inode = program.open()
            assert find(finder, inode) == (program.pid, fd)


def test_fewer_descriptors_than_before(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several were closed and one opened: looked at later, and still without a scan."""
    with programs(3) as made:
        one = made[0]
        held = [one.open() for _ in range(6)]
        for fd, inode in held:
            assert find(finder, inode) == (one.pid, fd)
        for fd, _ in held[1:5]:
            one.close(fd)
        monkeypatch.setattr(finder, "_find_anywhere", lambda *_: pytest.fail("every descriptor was looked at"))
        fd, inode = one.open()
        assert fd == held[1][0]
        assert find(finder, inode) == (one.pid, fd)


def test_a_crowd_elsewhere_does_not_come_first(finder: HolderFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many young processes may all be somebody else's: the known ones are looked at before."""
    with programs(2) as (one, other):
        assert find(finder, one.open()[1]) is not None and find(finder, other.open()[1]) is not None
        crowd = [fork(lambda: None) for _ in range(20)]
        assert [wait(pid) for pid in crowd] == [0] * 20
        monkeypatch.setattr(finder, "_young", lambda: range(crowd[-1], crowd[-1] - 20, -1))  # others may fork as well
        for known in finder._roll:
            known.ran = 1
        monkeypatch.setattr(roll.time, "clock_gettime_ns", lambda _clock: 1)
        monkeypatch.setattr(finder, "_find_young", lambda *_: pytest.fail("the young ones came first"))
        fd, inode = one.open()
        assert find(finder, inode) == (one.pid, fd)


def test_the_sitter_is_the_known_processs_and_ends_with_it(finder: HolderFinder) -> None:
    with programs(1) as (program,):
        assert finder.sitter(program.pid) is None  # not known yet
        assert find(finder, program.open()[1]) is not None
        sitter = finder.sitter(program.pid)
        assert sitter is not None and sitter is finder.sitter(program.pid)
        assert sitter.argv() == proc.argv(os.getpid()) and sitter.exe() == proc.exe(program.pid)
    finder.sweep()
    assert (sitter.exe(), sitter.argv(), finder.sitter(program.pid)) == (None, (), None)
