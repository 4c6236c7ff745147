"""The wrappers tell what the kernel said, and which call it was."""

from __future__ import annotations

import errno
import os

import pytest
from ground.child import fork, wait

from netns_graft.linux import syscalls


def test_setns_to_something_that_is_no_namespace() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(OSError) as refused:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    os.close(fd)
    assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, "setns")


def test_setns_to_a_namespace_of_another_kind() -> None:
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    with pytest.raises(OSError) as refused:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    os.close(fd)
    assert refused.value.errno == errno.EINVAL


def test_unshare_of_nonsense() -> None:
    with pytest.raises(OSError) as refused:
        syscalls.unshare(1)
    assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, "unshare")


def test_mount_and_umount_name_their_target() -> None:
    with pytest.raises(OSError) as refused:
        syscalls.mount("none", "/nonexistent", "tmpfs", 0)
    assert refused.value.filename == "mount /nonexistent"
    with pytest.raises(OSError) as refused:
        syscalls.umount("/nonexistent")
    assert refused.value.filename == "umount /nonexistent"


def test_the_process_name_is_cut_to_what_the_kernel_keeps() -> None:
    def work() -> None:
        syscalls.set_process_name("graft-forwarder and more")
        with open("/proc/self/comm") as file:
            assert file.read() == "graft-forwarder\n"

    assert wait(fork(work)) == 0


def test_not_dumpable() -> None:
    def work() -> None:
        syscalls.set_not_dumpable()
        assert os.stat("/proc/self/environ").st_uid == 0  # root's now, whoever we are

    assert wait(fork(work)) == 0


def test_ambient_capabilities_can_always_be_cleared() -> None:
    assert wait(fork(syscalls.clear_ambient_capabilities)) == 0
