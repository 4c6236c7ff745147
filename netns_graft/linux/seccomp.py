"""The seccomp filter of ptrace mode: which system calls stop for the tracer, and which are refused under ``strict``.

A classic BPF program that the kernel runs at every system call of the command and of all its descendants. Whatever
it allows without looking at arguments the kernel remembers in a bitmap (Linux 5.11), so that other calls cost nothing.
Only what is in registers can be judged here: a structure in memory (clone3's, socketcall's) may be changed by another
thread after we have looked, so those calls stop, and the tracer sees to them.

With no tracer a traced call fails with ENOSYS: without us there is no network.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from netns_graft.linux.syscalls import CLONE_NEWUSER

MARK = 0x6E67  # the 16 bits that a stop brings along: this very filter asked for it, and not one of the program's own
CLONE_UNTRACED = 0x00800000
PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE = 0, 16, 0x4206

RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_TRACE = 0x7FF00000
RET_ALLOW = 0x7FFF0000

_X32_BIT = 0x40000000
_SOL_SOCKET, _SO_ERROR = 1, 4
_SET_MODE_FILTER, _FLAG_SPEC_ALLOW, _FLAG_NEW_LISTENER = 1, 1 << 2, 1 << 3
_PR_SET_NO_NEW_PRIVS = 38
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_TYPE_MASK = 1, 2, 0xF
_PROTOCOLS = (0, 6, 17, 262)  # the default, TCP, UDP, MPTCP


class Arch(NamedTuple):
    """One system call interface of a machine; x86-64 has two of them."""

    audit: int  # AUDIT_ARCH_*, as the filter and PTRACE_GET_SYSCALL_INFO name it
    wide: bool  # pointers and longs are of 64 bits
    numbers: dict[str, int]
    names: dict[int, str]


def _arch(audit: int, wide: bool, **numbers: int) -> Arch:
    numbers |= {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
    return Arch(audit, wide, numbers, {number: name.removesuffix("_time64") for name, number in numbers.items()})


X86_64 = _arch(
    0xC000003E, True, connect=42, sendto=44, recvfrom=45, sendmsg=46, recvmsg=47, getsockname=51, getpeername=52,
    getsockopt=55, recvmmsg=299, sendmmsg=307, clone=56, ptrace=101, socket=41, unshare=272, setns=308, seccomp=317,
)  # fmt: skip
I386 = _arch(
    0x40000003, False, connect=362, sendto=369, recvfrom=371, sendmsg=370, recvmsg=372, getsockname=367,
    getpeername=368, getsockopt=365, recvmmsg=337, recvmmsg_time64=417, sendmmsg=345, clone=120, ptrace=26,
    socket=359, unshare=310, setns=346, seccomp=354, socketcall=102,
)  # fmt: skip
AARCH64 = _arch(
    0xC00000B7, True, connect=203, sendto=206, recvfrom=207, sendmsg=211, recvmsg=212, getsockname=204, getpeername=205,
    getsockopt=209, recvmmsg=243, sendmmsg=269, clone=220, ptrace=117, socket=198, unshare=97, setns=268, seccomp=277,
)  # fmt: skip

ARCHES = {"x86_64": (X86_64, I386), "aarch64": (AARCH64,)}

# What socketcall(2) of 32-bit x86 multiplexes (linux/net.h): number → name, and how many words its arguments take.
SOCKETCALLS = {
    1: ("socket", 3), 3: ("connect", 3), 6: ("getsockname", 3), 7: ("getpeername", 3), 11: ("sendto", 6),
    12: ("recvfrom", 6), 15: ("getsockopt", 5), 16: ("sendmsg", 3), 17: ("recvmsg", 3), 19: ("recvmmsg", 5),
    20: ("sendmmsg", 4),
}  # fmt: skip

_ALWAYS = ("connect", "sendmsg", "sendmmsg", "recvmsg", "recvmmsg", "recvmmsg_time64", "getpeername", "getsockname")

_LOAD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data


class _Assembler:
    """Classic BPF with named places. Jumps lead forward only, the conditional ones by at most 255 instructions."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str | None, str | None]] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> None:
        if name in self._places:
            raise ValueError(f"two places are called {name}")
        self._places[name] = len(self._lines)

    def load(self, offset: int) -> None:
        self._lines.append((_LOAD, offset, None, None))

    def load_argument(self, index: int, *, upper: bool = False) -> None:
        """One half of a 64-bit argument; little-endian, as all our machines are."""
        self.load(16 + 8 * index + 4 * upper)

    def keep_bits(self, mask: int) -> None:
        self._lines.append((_AND, mask, None, None))

    def if_equal(self, value: int, then: str | None, otherwise: str | None = None) -> None:
        """None: go on with the next instruction."""
        self._lines.append((_JEQ, value, then, otherwise))

    def if_at_least(self, value: int, then: str) -> None:
        self._lines.append((_JGE, value, then, None))

    def if_any_bit(self, mask: int, then: str) -> None:
        self._lines.append((_JSET, mask, then, None))

    def go(self, there: str) -> None:
        self._lines.append((_JA, 0, there, None))

    def verdict(self, value: int) -> None:
        self._lines.append((_RET, value, None, None))

    def assembled(self) -> bytes:
        """An array of struct sock_filter. ValueError when a jump is too long or leads nowhere forward."""
        packed = bytearray()
        for at, (code, value, then, otherwise) in enumerate(self._lines):
            ways = [0 if name is None else self._places[name] - at - 1 for name in (then, otherwise)]
            if min(ways) < 0 or (code != _JA and max(ways) > 255):
                raise ValueError(f"instruction {at} cannot reach {then} or {otherwise}")
            if code == _JA:
                packed += struct.pack("=HBBI", code, 0, 0, ways[0])
            else:
                packed += struct.pack("=HBBI", code, ways[0], ways[1], value)
        return bytes(packed)


def program(*, strict: bool = False, machine: str | None = None) -> bytes:
    """The filter for ``machine`` (as uname names it; this one unless told). OSError ENOSYS for machines unknown.

    Any other architecture than those of the machine ends the process: it would have numbers that we do not know.
    """
    machine = machine or os.uname().machine
    if machine not in ARCHES:
        raise OSError(errno.ENOSYS, f"ptrace mode knows no {machine}", "seccomp")
    asm = _Assembler()
    asm.load(_ARCH)
    for arch in ARCHES[machine]:
        asm.if_equal(arch.audit, f"{arch.audit:x}")
    asm.verdict(RET_KILL_PROCESS)
    for arch in ARCHES[machine]:
        asm.place(f"{arch.audit:x}")
        _section(asm, arch, f"{arch.audit:x} ", strict)
    return asm.assembled()


def _section(asm: _Assembler, arch: Arch, at: str, strict: bool) -> None:
    """Everything for one architecture; ``at`` begins the names of its places."""
    numbers = arch.numbers
    asm.load(_NUMBER)
    if arch is X86_64:
        asm.if_at_least(_X32_BIT, at + "unknown")  # x32 has other numbers for some calls, and no users
    for name in _ALWAYS:
        if name in numbers:
            asm.if_equal(numbers[name], at + "trace")
    asm.if_equal(numbers["sendto"], at + "address")
    asm.if_equal(numbers["recvfrom"], at + "address")
    asm.if_equal(numbers["getsockopt"], at + "getsockopt")
    asm.if_equal(numbers["clone"], at + "clone")
    asm.if_equal(numbers["clone3"], at + ("unknown" if strict else "trace"))  # ENOSYS: the C library takes clone
    asm.if_equal(numbers["ptrace"], at + "ptrace")
    if "socketcall" in numbers:
        asm.if_equal(numbers["socketcall"], at + "socketcall")
    if strict:
        for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "setns"):
            asm.if_equal(numbers[name], at + "refused")
        for name in ("socket", "unshare", "seccomp"):
            asm.if_equal(numbers[name], at + name)
    asm.verdict(RET_ALLOW)
    _arguments(asm, arch, at, strict)
    if strict:
        _strict_arguments(asm, at)
    asm.place(at + "allowed")
    asm.verdict(RET_ALLOW)
    asm.place(at + "trace")
    asm.verdict(RET_TRACE | MARK)
    asm.place(at + "unknown")
    asm.verdict(RET_ERRNO | errno.ENOSYS)
    asm.place(at + "refused")
    asm.verdict(RET_ERRNO | errno.EPERM)


def _arguments(asm: _Assembler, arch: Arch, at: str, strict: bool) -> None:
    asm.place(at + "address")  # sendto, recvfrom: the fifth argument is a pointer, null for none
    asm.load_argument(4)
    asm.if_equal(0, None, at + "trace")
    asm.load_argument(4, upper=True)
    asm.if_equal(0, at + "allowed", at + "trace")

    asm.place(at + "getsockopt")  # ints: the kernel takes the lower halves
    asm.load_argument(1)
    asm.if_equal(_SOL_SOCKET, None, at + "allowed")
    asm.load_argument(2)
    asm.if_equal(_SO_ERROR, at + "trace", at + "allowed")

    asm.place(at + "clone")
    asm.load_argument(0)
    if strict:
        asm.if_any_bit(CLONE_NEWUSER, at + "refused")
    asm.if_any_bit(CLONE_UNTRACED, at + "trace")
    asm.verdict(RET_ALLOW)

    asm.place(at + "ptrace")
    asm.load_argument(0)
    for request in (PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE):
        asm.if_equal(request, at + "trace")
    asm.verdict(RET_ALLOW)

    if "socketcall" in arch.numbers:
        asm.place(at + "socketcall")
        asm.load_argument(0)
        for number, (name, _) in SOCKETCALLS.items():
            if name != "socket" or strict:
                asm.if_equal(number, at + "trace")
        asm.verdict(RET_ALLOW)


def _strict_arguments(asm: _Assembler, at: str) -> None:
    """What leaves the machine leaves by TCP or UDP, by calls that we see, from this user namespace."""
    asm.place(at + "socket")
    asm.load_argument(0)
    asm.if_equal(_AF_UNIX, at + "allowed")
    asm.if_equal(_AF_NETLINK, at + "allowed")  # of type SOCK_RAW, and sends no packets
    asm.if_equal(_AF_INET, at + "type")
    asm.if_equal(_AF_INET6, at + "type")
    asm.go(at + "refused")
    asm.place(at + "type")
    asm.load_argument(1)
    asm.keep_bits(_SOCK_TYPE_MASK)  # without SOCK_NONBLOCK and SOCK_CLOEXEC
    asm.if_equal(_SOCK_STREAM, at + "protocol")
    asm.if_equal(_SOCK_DGRAM, at + "protocol")
    asm.go(at + "refused")
    asm.place(at + "protocol")
    asm.load_argument(2)
    for number in _PROTOCOLS:
        asm.if_equal(number, at + "allowed")
    asm.go(at + "refused")

    asm.place(at + "unshare")
    asm.load_argument(0)
    asm.if_any_bit(CLONE_NEWUSER, at + "refused")
    asm.verdict(RET_ALLOW)

    asm.place(at + "seccomp")  # a listener's "continue" outranks our stop: the call would happen unseen
    asm.load_argument(0)
    asm.if_equal(_SET_MODE_FILTER, None, at + "allowed")
    asm.load_argument(1)
    asm.if_any_bit(_FLAG_NEW_LISTENER, at + "refused")
    asm.verdict(RET_ALLOW)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_SECCOMP_HERE = {"x86_64": 317, "aarch64": 277}.get(os.uname().machine, -1)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def install(instructions: bytes, *, no_new_privs: bool) -> None:
    """Put ``instructions`` (from ``program``) on the calling thread, for good, and on all that it will start.

    Without CAP_SYS_ADMIN the kernel demands ``no_new_privs``, with which set-uid files give no privileges. OSError.
    """
    if no_new_privs and _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
    descriptor = _Program(len(instructions) // 8, instructions)
    # SPEC_ALLOW: before Linux 5.16 a filter would otherwise slow the program down by what it does against Spectre.
    done = _libc.syscall(
        ctypes.c_long(_SECCOMP_HERE),
        ctypes.c_ulong(_SET_MODE_FILTER),
        ctypes.c_ulong(_FLAG_SPEC_ALLOW),
        ctypes.byref(descriptor),
    )
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "seccomp")
