"""Another thread's descriptors: the very open file, or nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from ground.child import end, fork

from netns_graft.linux import pidfd

CLONE_FILES = 0x400


@pytest.fixture
def holder() -> Iterator[tuple[int, int, int]]:
    """A process, a thread of it with a descriptor table of its own, and its descriptor 70: for the process the pipe's
    reading end, for the thread /dev/null. Given as (process, thread, a pipe's reading end of ours)."""
    ours_read, theirs_write = os.pipe()
    tell_read, tell_write = os.pipe()

    def work() -> None:
        os.dup2(ours_read, 70)

        def of_its_own() -> None:
            assert ctypes.CDLL(None).unshare(CLONE_FILES) == 0
            os.dup2(os.open("/dev/null", os.O_RDONLY), 70)
            os.write(tell_write, str(threading.get_native_id()).encode())
            signal.pause()

        threading.Thread(target=of_its_own, daemon=True).start()
        signal.pause()

    pid = fork(work)
    os.close(tell_write)
    yield pid, int(os.read(tell_read, 16)), ours_read
    end(pid)
    for fd in (ours_read, theirs_write, tell_read):
        os.close(fd)


def same_file(fd: int, other: int | str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(other))
    finally:
        os.close(fd)


def test_the_descriptor_is_the_threads(holder: tuple[int, int, int]) -> None:
    pid, thread, ours_read = holder
    assert same_file(pidfd.descriptor_of(pid, 70), ours_read)
    assert same_file(pidfd.descriptor_of(thread, 70), "/dev/null")


def test_it_is_the_same_open_file_and_does_not_survive_exec(holder: tuple[int, int, int]) -> None:
    pid, _, ours_read = holder
    fd = pidfd.descriptor_of(pid, 70)
    assert not os.get_inheritable(fd)
    os.set_blocking(fd, False)
    assert not os.get_blocking(ours_read)  # flags are the open file's, which all of us share
    os.close(fd)


def test_by_the_leader_only_when_the_table_is_the_same(holder: tuple[int, int, int]) -> None:
    pid, thread, ours_read = holder
    assert same_file(pidfd.descriptor_by_leader(pid, 70), ours_read)
    assert not pidfd.same_descriptors(pid, thread)
    with pytest.raises(PermissionError):
        pidfd.descriptor_by_leader(thread, 70)


@pytest.mark.parametrize("take", [pidfd.descriptor_of, pidfd.descriptor_by_leader])
def test_what_is_not_there(take: object, holder: tuple[int, int, int]) -> None:
    assert callable(take)
    pid, _, _ = holder
    for fd in (71, -1, 1 << 30):
        with pytest.raises(OSError) as refused:
            take(pid, fd)
        assert (refused.value.errno, refused.value.filename) == (errno.EBADF, "pidfd_getfd")
    gone = fork(lambda: None)
    os.waitpid(gone, 0)
    with pytest.raises(ProcessLookupError):
        take(gone, 0)
