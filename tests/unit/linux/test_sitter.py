"""A process through files of /proc that are kept open: what it is now, and nothing when it is no more."""

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

from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors
from netns_graft.linux.sitter import Pulse, Sitter


@contextmanager
def sitting(pid: int) -> Iterator[Sitter]:
    descriptors = Descriptors(pid)
    sitter = Sitter(descriptors)
    yield sitter
    sitter.close()
    descriptors.close()


class TestSitter:
    def test_the_same_as_by_path(self) -> None:
        with subprocess.Popen([sys.executable, "-ISc", "input()", "", "\udcff é"], stdin=subprocess.PIPE) as running:
            assert eventually(lambda: proc.argv(running.pid)[-1:] == ("\udcff é",))
            with sitting(running.pid) as sitter:
                for _ in range(2):
                    assert sitter.pid == running.pid
                    assert sitter.exe() == proc.exe(running.pid) == os.path.realpath(sys.executable)
                    assert sitter.argv() == proc.argv(running.pid)
                    assert sitter.argv()[1:] == ("-ISc", "input()", "", "\udcff é")
            running.kill()

    def test_after_an_exec_it_tells_of_the_new_program(self) -> None:
        script = "import os; input(); os.execv('/bin/sleep', ['sleep', '60'])"
        with subprocess.Popen([sys.executable, "-ISc", script], stdin=subprocess.PIPE) as running:
            assert eventually(lambda: proc.argv(running.pid)[:1] == (sys.executable,))
            with sitting(running.pid) as sitter:
                assert sitter.argv()[0] == sys.executable
                assert running.stdin is not None
                running.stdin.write(b"\n")
                running.stdin.flush()
                assert eventually(lambda: sitter.argv() == ("sleep", "60"))
                assert sitter.exe() == os.path.realpath("/bin/sleep")
            running.kill()

    def test_arguments_that_the_program_itself_has_replaced(self) -> None:
        """Without any exec: what is read is what it is called now."""
        script = (
            "import ctypes, sys\n"
            "with open('/proc/self/stat') as file: at = int(file.read().rpartition(')')[2].split()[45])\n"
            "input()\n"
            "ctypes.memmove(at, b'worker: 1', 9)\n"
            "input()\n"
        )
        with subprocess.Popen([sys.executable, "-Ic", script], stdin=subprocess.PIPE) as running:
            assert eventually(lambda: proc.argv(running.pid)[:1] == (sys.executable,))
            with sitting(running.pid) as sitter:
                assert sitter.argv()[0] == sys.executable
                assert running.stdin is not None
                running.stdin.write(b"\n")
                running.stdin.flush()
                assert eventually(lambda: sitter.argv()[0].startswith("worker: 1"))
            running.kill()

    def test_a_program_whose_file_is_gone(self, tmp_path: Path) -> None:
        copy = tmp_path / "cat (deleted)"
        shutil.copyfile(shutil.which("cat") or "/bin/cat", copy)
        copy.chmod(0o755)
        with subprocess.Popen([copy], stdin=subprocess.PIPE) as running:
            assert eventually(lambda: proc.argv(running.pid) == (str(copy),))
            with sitting(running.pid) as sitter:
                assert sitter.exe() == str(copy)
                copy.unlink()
                assert sitter.exe() == str(copy)
            running.kill()

    def test_the_descriptor_that_it_connects(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            with socket.create_connection(address):  # the queue is full: the next one waits in connect()
                numbers_read, numbers_write = os.pipe()

                def connects() -> None:
                    sock = socket.socket()
                    os.write(numbers_write, sock.fileno().to_bytes(4, "big"))
                    sock.connect(address)

                pid = fork(connects)
                fd = int.from_bytes(os.read(numbers_read, 4), "big")
                with sitting(pid) as sitter, sitting(os.getpid()) as ourselves:
                    assert eventually(sitter.connecting) == fd == proc.connecting(pid) == sitter.connecting()
                    assert ourselves.connecting() is None
                end(pid)
                os.close(numbers_read)
                os.close(numbers_write)

    def test_a_zombie_has_no_program(self) -> None:
        pid = fork(signal.pause)
        with sitting(pid) as sitter:
            assert sitter.exe() is not None
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert (sitter.exe(), sitter.argv(), sitter.connecting()) == (None, (), None)
            os.waitpid(pid, 0)

    def test_nothing_of_a_process_that_has_ended(self) -> None:
        pid = fork(signal.pause)
        descriptors = Descriptors(pid)
        with sitting(pid) as sitter:
            end(pid)
            assert (sitter.exe(), sitter.argv(), sitter.connecting()) == (None, (), None)
        with pytest.raises(OSError):
            Sitter(descriptors)
        descriptors.close()

    def test_closed_it_tells_nothing(self) -> None:
        before = os.listdir("/proc/self/fd")
        with sitting(os.getpid()) as sitter:
            sitter.connecting()
        assert os.listdir("/proc/self/fd") == before
        assert (sitter.exe(), sitter.argv(), sitter.connecting()) == (None, (), None)
        sitter.close()


class TestPulse:
    def test_until_it_ends(self) -> None:
        pid = fork(signal.pause)
        pulse = Pulse(pid)
        assert pulse.beats() and pulse.beats()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not pulse.beats()  # a zombie
        os.waitpid(pid, 0)
        assert not pulse.beats()
        pulse.close()

    def test_closed(self) -> None:
        pulse = Pulse(os.getpid())
        assert pulse.beats()
        pulse.close()
        assert not pulse.beats()
        pulse.close()

    def test_nobody(self) -> None:
        pid = fork(lambda: None)
        os.waitpid(pid, 0)
        with pytest.raises(OSError):
            Pulse(pid)
