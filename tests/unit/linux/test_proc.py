"""/proc read for real: processes of this test's own, and the strange things that their names and files may be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground.child import end, eventually, fork

from netns_graft.linux import proc, syscalls

SLEEP = shutil.which("sleep") or "/bin/sleep"
GONE = 2**22 + 1  # larger than any pid


@contextmanager
def running(*argv: str | bytes, executable: str | bytes | None = None) -> Iterator[int]:
    """A program that runs meanwhile: its exec is over."""
    with subprocess.Popen(argv, executable=executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            # The kernel closes Popen's pipe before it has laid out the arguments.
            assert eventually(lambda: proc.argv(process.pid))
            yield process.pid
        finally:
            process.kill()


def cat(directory: bytes, name: bytes) -> bytes:
    """A copy of ``cat``, which waits for its input, under this name."""
    path = os.path.join(directory, name)
    shutil.copyfile(os.fsencode(shutil.which("cat") or "/bin/cat"), path)
    os.chmod(path, 0o755)
    return path


class TestStat:
    def test_our_own(self) -> None:
        mine = proc.stat(os.getpid())
        assert mine is not None and mine.parent == os.getppid()

    @pytest.mark.parametrize("name", ["a) S 1 2 3", "((", "))", ") ", "a b", "\n", "x) R 99 (y"])
    def test_a_name_that_looks_like_fields(self, name: str) -> None:
        ready_read, ready_write = os.pipe()

        def work() -> None:
            syscalls.set_process_name(name)
            os.write(ready_write, b"x")
            signal.pause()

        pid = fork(work)
        assert os.read(ready_read, 1) == b"x"
        found = proc.stat(pid)
        end(pid)
        os.close(ready_read)
        os.close(ready_write)
        mine = proc.stat(os.getpid())
        assert found is not None and mine is not None
        assert found.parent == os.getpid() and found.start >= mine.start

    def test_nobody(self) -> None:
        assert proc.stat(GONE) is None

    def test_a_process_that_was_reaped(self) -> None:
        pid = fork(lambda: None)
        os.waitpid(pid, 0)
        assert proc.stat(pid) is None


class TestExe:
    def test_our_own(self) -> None:
        assert proc.exe(os.getpid()) == os.path.realpath(sys.executable)

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        path = cat(bytes(tmp_path), b"program")
        with running(path) as pid:
            os.unlink(path)
            assert proc.exe(pid) == os.fsdecode(path)

    def test_a_file_that_is_called_so(self, tmp_path: Path) -> None:
        """" (deleted)" at the end of its name, and it is there."""
        path = cat(bytes(tmp_path), b"program (deleted)")
        with running(path) as pid:
            assert proc.exe(pid) == os.fsdecode(path)

    def test_a_file_that_was_called_so_and_is_gone(self, tmp_path: Path) -> None:
        path = cat(bytes(tmp_path), b"program (deleted)")
        with running(path) as pid:
            os.unlink(path)
            assert proc.exe(pid) == os.fsdecode(path)

    def test_a_file_that_is_gone_and_another_that_is_called_like_the_link(self, tmp_path: Path) -> None:
        path = cat(bytes(tmp_path), b"program")
        cat(bytes(tmp_path), b"program (deleted)")
        with running(path) as pid:
            os.unlink(path)
            assert proc.exe(pid) == os.fsdecode(path)

    def test_a_file_that_was_replaced(self, tmp_path: Path) -> None:
        """As package managers do: another file has its name now. What runs is still the old one, by that name."""
        path = cat(bytes(tmp_path), b"program")
        with running(path) as pid:
            os.rename(cat(bytes(tmp_path), b"new"), path)
            assert proc.exe(pid) == os.fsdecode(path)

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = cat(bytes(tmp_path), b"\xff\xfe caf\xe9")
        with running(path) as pid:
            assert os.fsencode(proc.exe(pid) or "") == path

    def test_nobody(self) -> None:
        assert proc.exe(GONE) is None


class TestArgv:
    def test_as_given(self) -> None:
        with running(SLEEP, "60") as pid:
            assert proc.argv(pid) == (SLEEP, "60")

    def test_empty_ones_are_kept(self) -> None:
        with running(sys.executable, "-ISc", "input()", "", "a b", "") as pid:
            assert proc.argv(pid) == (sys.executable, "-ISc", "input()", "", "a b", "")

    def test_not_utf8(self) -> None:
        with running(sys.executable, "-ISc", "input()", b"\xff\xc3") as pid:
            assert os.fsencode(proc.argv(pid)[3]) == b"\xff\xc3"

    def test_huge(self) -> None:
        with running(sys.executable, "-ISc", "input()", "x" * 100_000, "y") as pid:
            got = proc.argv(pid)
        assert sum(len(part) + 1 for part in got) <= proc.ARGV_LIMIT + 1
        assert got[:3] == (sys.executable, "-ISc", "input()") and set(got[3]) == {"x"} and len(got) == 4

    def test_a_zombie_has_none(self) -> None:
        pid = fork(lambda: None)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert proc.argv(pid) == ()
        assert proc.exe(pid) is None
        assert proc.descriptors(pid) == []
        os.waitpid(pid, 0)

    def test_nobody(self) -> None:
        assert proc.argv(GONE) == ()


class TestHolders:
    def test_our_own_socket(self) -> None:
        with socket.socket() as sock:
            inode = os.fstat(sock.fileno()).st_ino
            assert proc.holds_socket(os.getpid(), sock.fileno(), inode)
            assert not proc.holds_socket(os.getpid(), sock.fileno(), inode + 1)
            assert sock.fileno() in proc.descriptors(os.getpid())
        assert not proc.holds_socket(os.getpid(), 9999, inode)
        assert not proc.holds_socket(GONE, 3, inode)

    def test_descriptors_come_highest_first(self) -> None:
        found = proc.descriptors(os.getpid())
        assert found == sorted(found, reverse=True) and 0 in found

    def test_pids_and_children(self) -> None:
        pid = fork(lambda: signal.pause())
        assert pid in proc.pids() and os.getpid() in proc.pids()
        assert pid in proc.children(os.getpid())
        end(pid)
        assert pid not in proc.pids() and pid not in proc.children(os.getpid())
        assert proc.children(GONE) == []

    def test_network_namespace(self) -> None:
        assert proc.network_namespace(os.getpid()) == os.stat("/proc/self/ns/net").st_ino
        assert proc.network_namespace(GONE) is None


class TestTables:
    """As text: /proc/net/tcp and its like. netns/test_attribution_netns.py compares them with sock_diag."""

    def test_an_established_connection(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        with listener, client, served:
            ends = _ends(client)
            row = proc.find_in_tables(os.getpid(), socket.IPPROTO_TCP, *ends)
            assert row == (os.fstat(client.fileno()).st_ino, os.getuid())
            row = proc.find_in_tables(os.getpid(), socket.IPPROTO_TCP, *ends[2:], *ends[:2])
            assert row == (os.fstat(served.fileno()).st_ino, os.getuid())

    def test_a_listener_is_no_answer(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            own = socket.inet_aton("127.0.0.1")
            assert proc.find_in_tables(os.getpid(), socket.IPPROTO_TCP, own, port, own, 9) is None

    def test_nobody(self) -> None:
        own = socket.inet_aton("127.0.0.1")
        assert proc.find_in_tables(GONE, socket.IPPROTO_TCP, own, 1, own, 9) is None


def _ends(sock: socket.socket) -> tuple[bytes, int, bytes, int]:
    own, peer = sock.getsockname(), sock.getpeername()
    return socket.inet_aton(own[0]), own[1], socket.inet_aton(peer[0]), peer[1]
