"""/proc read for real: processes of this test's own, and the strange things that their names and files may be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground.child import end, eventually, fork, wait

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
        os.waitpid(pid, 0)

    def test_nobody(self) -> None:
        assert proc.argv(GONE) == ()


class TestDescriptors:
    def test_our_own(self) -> None:
        with socket.socket() as sock:
            ours = proc.Descriptors(os.getpid())
            inode = os.fstat(sock.fileno()).st_ino
            assert ours.target(sock.fileno()) == f"socket:[{inode}]"
            assert ours.target(9999) == ""
            found = ours.numbers()
            assert found == sorted(found, reverse=True) and sock.fileno() in found
            ours.close()

    def test_their_number(self) -> None:
        """Linux 6.2 and later; before, it is 0."""
        ours = proc.Descriptors(os.getpid())
        before = ours.count()
        with socket.socket():
            assert ours.count() in (before + 1, 0)
        ours.close()

    def test_they_stay_those_of_one_process(self) -> None:
        pid = fork(lambda: signal.pause())
        its = proc.Descriptors(pid)
        assert its.numbers()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert its.numbers() == []  # a zombie
        os.waitpid(pid, 0)
        assert its.numbers() == [] and its.target(0) == ""
        with pytest.raises(OSError):
            its.count()
        its.close()

    def test_by_fdinfo_a_socket_is_the_same(self) -> None:
        """What is left for an undumpable process; a file that has a socket's inode number is not one."""
        with socket.socket() as sock, tempfile.TemporaryFile() as file:
            ours = proc.Descriptors(os.getpid())
            by_info = proc.Descriptors(os.getpid())
            os.close(by_info.fd)
            by_info.fd, by_info._by_info = os.open("/proc/self/fdinfo", os.O_RDONLY | os.O_CLOEXEC), True
            assert sock.fileno() in by_info.numbers()
            assert by_info.target(sock.fileno()) == ours.target(sock.fileno())
            assert not by_info.target(file.fileno()).startswith("socket:")
            assert by_info.target(9999) == ""
            ours.close()
            by_info.close()

    def test_closed_it_is_as_if_the_process_had_ended(self) -> None:
        ours = proc.Descriptors(os.getpid())
        ours.close()
        assert ours.numbers() == [] and ours.target(0) == ""
        with pytest.raises(OSError):
            ours.count()

    def test_nobody(self) -> None:
        with pytest.raises(OSError):
            proc.Descriptors(GONE)


class TestThreads:
    def test_the_process_of_a_thread(self) -> None:
        asked: list[int | None] = []
        thread = threading.Thread(
            target=lambda: asked.extend((threading.get_native_id(), proc.process_of_thread(threading.get_native_id())))
        )
        thread.start()
        thread.join()
        assert asked[0] != os.getpid() and asked[1] == os.getpid()
        assert proc.process_of_thread(GONE) is None

    def test_who_is_in_connect(self) -> None:
        """A connect that waits is seen with its descriptor; one that is over, and any other call, is not."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            address = listener.getsockname()

            def work() -> None:
                socks = [socket.socket() for _ in range(3)]
                socks[1].connect(address)  # fills the queue
                socks[0].close()
                socks[2].connect(address)

            pid = fork(work)
            fd = eventually(lambda: proc.connecting(pid))
            its = proc.Descriptors(pid)
            assert its.target(fd).startswith("socket:[")
            its.close()
            end(pid)
        assert proc.connecting(os.getpid()) is None
        assert proc.connecting(GONE) is None


class TestWhoIsThere:
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

    def test_network_namespaces(self) -> None:
        found = list(proc.network_namespaces(set()))
        inodes = [os.fstat(fd).st_ino for fd in found]
        for fd in found:
            os.close(fd)
        own = proc.own_network_namespace()
        assert own in inodes and len(set(inodes)) == len(inodes)
        others = list(proc.network_namespaces({own}))
        assert own not in [os.fstat(fd).st_ino for fd in others]
        for fd in others:
            os.close(fd)

    def test_newest_pid(self) -> None:
        pid = fork(lambda: None)
        newest = proc.NewestPid()
        assert newest.read() >= pid
        before = newest.read()
        os.waitpid(pid, 0)
        os.waitpid(fork(lambda: None), 0)
        assert newest.read() != before
        newest.close()

    def test_is_process(self) -> None:
        done = threading.Event()
        thread = threading.Thread(target=done.wait, args=(5,))
        thread.start()
        pid = fork(lambda: None)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        numbers = (os.getpid(), pid, thread.native_id or 0, GONE)
        assert [proc.is_process(number) for number in numbers] == [True, True, False, False]
        assert wait(pid) == 0
        assert not proc.is_process(pid)
        done.set()
        thread.join()

    def test_innermost_pid(self) -> None:
        assert proc.innermost_pid(os.getpid()) is None  # one name only
        assert proc.innermost_pid(GONE) is None


def test_capabilities_are_those_of_root_or_none() -> None:
    """In the tests' own world: root has CAP_SYS_ADMIN (21) and CAP_NET_ADMIN (12), an ordinary user nothing."""
    needed = (1 << 21) | (1 << 12)
    assert proc.effective_capabilities() & needed == (needed if os.geteuid() == 0 else 0)
