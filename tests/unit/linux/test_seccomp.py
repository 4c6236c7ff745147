"""The filter's verdict on every call of every architecture, by an interpreter of classic BPF.

The numbers are the kernel's own, written down here once more: from its tables, not from the module.
"""

from __future__ import annotations

import errno
import functools
import os
import struct

import pytest
from ground.child import fork, wait
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.linux import seccomp

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
MACHINE = {X86_64: "x86_64", I386: "x86_64", AARCH64: "aarch64"}

ALLOW, TRACE, KILL = 0x7FFF0000, 0x7FF06E67, 0x80000000
NOT_PERMITTED, NO_SUCH_CALL = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

ALWAYS_STOP = {
    X86_64: {42, 46, 47, 51, 52, 299, 307},
    I386: {362, 370, 372, 367, 368, 337, 417, 345},
    AARCH64: {203, 211, 212, 204, 205, 243, 269},
}
ADDRESSED = {X86_64: {44, 45}, I386: {369, 371}, AARCH64: {206, 207}}  # sendto, recvfrom
GETSOCKOPT = {X86_64: 55, I386: 365, AARCH64: 209}
CLONE = {X86_64: 56, I386: 120, AARCH64: 220}
PTRACE = {X86_64: 101, I386: 26, AARCH64: 117}
SOCKET = {X86_64: 41, I386: 359, AARCH64: 198}
UNSHARE = {X86_64: 272, I386: 310, AARCH64: 97}
SETNS = {X86_64: 308, I386: 346, AARCH64: 268}
SECCOMP = {X86_64: 317, I386: 354, AARCH64: 277}
SOCKETCALL, CLONE3 = 102, 435
IO_URING = {425, 426, 427}

NEWUSER, UNTRACED = 0x10000000, 0x00800000
arches = pytest.mark.parametrize("arch", [X86_64, I386, AARCH64], ids=["x86_64", "i386", "aarch64"])


def run(instructions: bytes, arch: int, number: int, *args: int) -> int:
    """What the kernel's interpreter would return. An instruction that it does not know is an error."""
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *[*args, 0, 0, 0, 0, 0, 0][:6])
    code_lines = list(struct.iter_unpack("=HBBI", instructions))
    at = accumulator = 0
    for _ in range(len(code_lines)):  # jumps lead forward: it ends
        code, yes, no, value = code_lines[at]
        at += 1
        if code == 0x20:
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x05:
            at += value
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x35:
            at += yes if accumulator >= value else no
        elif code == 0x45:
            at += yes if accumulator & value else no
        elif code == 0x54:
            accumulator &= value
        else:
            assert code == 0x06
            return int(value)
    raise AssertionError("it runs off its end")


def verdict(arch: int, number: int, *args: int, strict: bool = False) -> int:
    return run(program(arch, strict), arch, number, *args)


@functools.cache
def program(arch: int, strict: bool) -> bytes:
    return seccomp.program(strict=strict, machine=MACHINE[arch])


@arches
def test_what_stops_and_nothing_else(arch: int) -> None:
    stopping = {number for number in range(700) if verdict(arch, number) != ALLOW}
    assert stopping == ALWAYS_STOP[arch] | {PTRACE[arch], CLONE3}  # ptrace(0, …) is TRACEME
    assert {verdict(arch, number) for number in stopping} == {TRACE}


@arches
def test_what_strict_adds(arch: int) -> None:
    verdicts = {number: verdict(arch, number, strict=True) for number in range(700)}
    refused = {number for number, it in verdicts.items() if it == NOT_PERMITTED}
    assert refused == IO_URING | {SETNS[arch], SOCKET[arch]}  # socket(0, …): AF_UNSPEC
    assert verdicts[CLONE3] == NO_SUCH_CALL
    assert {number for number, it in verdicts.items() if it == TRACE} == ALWAYS_STOP[arch] | {PTRACE[arch]}


@arches
@pytest.mark.parametrize("strict", [False, True])
def test_an_address_in_either_half(arch: int, strict: bool) -> None:
    for number in ADDRESSED[arch]:
        assert verdict(arch, number, 3, 4096, 5, 0, 0, 0, strict=strict) == ALLOW
        assert verdict(arch, number, 3, 4096, 5, 0, 4096, 16, strict=strict) == TRACE
        if arch != I386:
            assert verdict(arch, number, 3, 4096, 5, 0, 1 << 32, 16, strict=strict) == TRACE


@arches
def test_only_the_pending_error_of_a_socket(arch: int) -> None:
    number = GETSOCKOPT[arch]
    assert verdict(arch, number, 3, 1, 4) == TRACE
    assert verdict(arch, number, 3, (7 << 32) | 1, (7 << 32) | 4) == TRACE  # the kernel drops the upper halves
    assert verdict(arch, number, 3, 1, 3) == ALLOW
    assert verdict(arch, number, 3, 6, 4) == ALLOW
    assert verdict(arch, number, 3, 4, 1) == ALLOW


@arches
def test_clone(arch: int) -> None:
    number = CLONE[arch]
    assert verdict(arch, number, 17) == ALLOW
    assert verdict(arch, number, 17 | UNTRACED) == TRACE
    assert verdict(arch, number, 17 | NEWUSER) == ALLOW
    assert verdict(arch, number, 17 | NEWUSER, strict=True) == NOT_PERMITTED
    assert verdict(arch, number, 17 | NEWUSER | UNTRACED, strict=True) == NOT_PERMITTED
    assert verdict(arch, number, 17 | UNTRACED, strict=True) == TRACE


@arches
def test_ptrace(arch: int) -> None:
    traced = {request for request in range(0x4300) if verdict(arch, PTRACE[arch], request) == TRACE}
    assert traced == {0, 16, 0x4206}


def test_socketcall_by_what_it_calls() -> None:
    told = {number for number in range(32) if verdict(I386, SOCKETCALL, number, 4096) == TRACE}
    assert told == {3, 6, 7, 11, 12, 15, 16, 17, 19, 20}
    strict = {number for number in range(32) if verdict(I386, SOCKETCALL, number, 4096, strict=True) == TRACE}
    assert strict == told | {1}  # the arguments of socket() are in memory


@arches
def test_sockets_under_strict(arch: int) -> None:
    nonblock_cloexec = 0o2004000
    allowed = set()
    for family in range(64):
        for kind in range(16):
            for protocol in (0, 1, 6, 17, 58, 132, 136, 255, 262):
                got = verdict(arch, SOCKET[arch], family, kind | nonblock_cloexec, protocol, strict=True)
                assert got in (ALLOW, NOT_PERMITTED)
                if got == ALLOW and family not in (1, 16):
                    allowed.add((family, kind, protocol))
    assert allowed == {(f, kind, p) for f in (2, 10) for kind in (1, 2) for p in (0, 6, 17, 262)}
    for family in (1, 16):  # Unix, netlink: every type and protocol
        assert verdict(arch, SOCKET[arch], family, 3, 0, strict=True) == ALLOW
    assert verdict(arch, SOCKET[arch], 17, 3, 0) == ALLOW  # and nothing of this without strict


@arches
def test_namespaces_and_listeners_under_strict(arch: int) -> None:
    assert verdict(arch, UNSHARE[arch], NEWUSER, strict=True) == NOT_PERMITTED
    assert verdict(arch, UNSHARE[arch], 0x40000000, strict=True) == ALLOW  # an empty network namespace leads nowhere
    assert verdict(arch, UNSHARE[arch], NEWUSER) == ALLOW
    assert verdict(arch, SECCOMP[arch], 1, 8, strict=True) == NOT_PERMITTED
    assert verdict(arch, SECCOMP[arch], 1, 1, strict=True) == ALLOW
    assert verdict(arch, SECCOMP[arch], 2, 8, strict=True) == ALLOW  # not a filter that is set


def test_other_architectures() -> None:
    for strict in (False, True):
        assert run(seccomp.program(strict=strict, machine="x86_64"), AARCH64, 0) == KILL
        assert run(seccomp.program(strict=strict, machine="aarch64"), ARM, 0) == KILL
        assert run(seccomp.program(strict=strict, machine="aarch64"), X86_64, 0) == KILL
    with pytest.raises(OSError) as refused:
        seccomp.program(machine="riscv64")
    assert refused.value.errno == errno.ENOSYS


def test_x32_has_no_calls() -> None:
    for number in (0x40000000, 0x40000000 | 42, 0x40000000 | 512, 0xFFFFFFFF):
        assert verdict(X86_64, number) == NO_SUCH_CALL


@given(number=st.integers(0, (1 << 32) - 1), args=st.lists(st.integers(0, (1 << 64) - 1), max_size=6))
def test_whatever_is_called_strict_allows_no_more(number: int, args: list[int]) -> None:
    for arch in (X86_64, I386, AARCH64):
        if verdict(arch, number, *args, strict=True) == ALLOW:
            assert verdict(arch, number, *args) == ALLOW


def test_the_assembler_refuses_what_cannot_be_a_program() -> None:
    backwards = seccomp._Assembler()
    backwards.place("start")
    backwards.go("start")
    too_far = seccomp._Assembler()
    too_far.if_equal(1, "end")
    for _ in range(256):
        too_far.load(0)
    too_far.place("end")
    for wrong in (backwards, too_far):
        with pytest.raises(ValueError, match="cannot reach"):
            wrong.assembled()
    with pytest.raises(ValueError, match="two places"):
        backwards.place("start")


def test_the_kernel_takes_it() -> None:
    def work() -> None:
        with pytest.raises(OSError) as refused:
            seccomp.install(b"\0" * 8, no_new_privs=True)  # a program that does not end in a return
        assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, "seccomp")
        for strict in (False, True):
            seccomp.install(seccomp.program(strict=strict), no_new_privs=True)
        os.getpid()

    assert wait(fork(work)) == 0
