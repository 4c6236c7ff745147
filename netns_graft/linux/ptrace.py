"""ptrace(2) for a tracer that stops its tracees at few system calls only, and never for long.

Everything here is for the one thread that seized the tracee: ptrace belongs to a thread. Every function raises OSError;
ESRCH: the thread is gone, or was killed in its stop. PTRACE_GET_SYSCALL_INFO (Linux 5.3) tells architecture, number,
arguments and result alike on every machine; only changing them needs its registers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import NamedTuple

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_SECCOMP, EVENT_STOP = 1, 2, 3, 4, 7, 128
SYSCALL_STOP = signal.SIGTRAP | 0x80  # the "signal" of a system call's stop, by PTRACE_O_TRACESYSGOOD
WALL = 0x40000000  # of waitpid: threads, and children of whatever clone, too

_POKEDATA, _POKEUSER, _CONT, _SYSCALL = 5, 6, 7, 24
_GETEVENTMSG, _GETREGSET, _SETREGSET, _SEIZE, _LISTEN = 0x4201, 0x4204, 0x4205, 0x4206, 0x4208
_GET_SYSCALL_INFO = 0x420E
_INFO_EXIT, _INFO_SECCOMP = 2, 3
_SYSGOOD, _EXITKILL = 1, 1 << 20
_OPTIONS = _SYSGOOD | _EXITKILL | sum(
    1 << event for event in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_SECCOMP)
)
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404
_TGKILL = {"x86_64": 234, "aarch64": 131}.get(os.uname().machine, -1)
_ARM = os.uname().machine == "aarch64"

# struct user_regs_struct of x86-64: where POKEUSER finds a register. The 32-bit calls take theirs from the same.
_RBX, _RAX, _RCX, _RDX, _RDI, _ORIG_RAX = (8 * index for index in (5, 10, 11, 12, 14, 15))

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
_libc.syscall.argtypes = [ctypes.c_long] * 4
_libc.signalfd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
for _transfer in (_libc.process_vm_readv, _libc.process_vm_writev):
    _transfer.restype = ctypes.c_ssize_t
    _transfer.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip

# One thread does all: what the kernel fills in or reads needs to be made only once.
_info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
_info_at = ctypes.addressof(_info)
_word = ctypes.c_ulong()
_word_at = ctypes.addressof(_word)
_local, _remote = (ctypes.c_ulong * 2)(), (ctypes.c_ulong * 2)()  # struct iovec: address, length
_local_at, _remote_at = ctypes.addressof(_local), ctypes.addressof(_remote)
_SMALL = 4096
_small = ctypes.create_string_buffer(_SMALL)
_small_at = ctypes.addressof(_small)
_SECCOMP_INFO = struct.Struct("=B3xI16x7QI")  # op, arch, number, six arguments, SECCOMP_RET_DATA
_EXIT_INFO = struct.Struct("=B23xq")  # op, result


class Entry(NamedTuple):
    """A system call that a seccomp filter stopped before it began."""

    audit: int  # AUDIT_ARCH_*
    number: int
    args: tuple[int, ...]  # six, unsigned
    mark: int  # what the filter gave along: SECCOMP_RET_DATA


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)


def seize(pid: int) -> None:
    """Trace thread ``pid`` and whatever it starts, without stopping it. All of them end with this thread."""
    if _ptrace(_SEIZE, pid, 0, _OPTIONS) != 0:
        raise _failed("ptrace seize")


def cont(tid: int, signal_number: int = 0) -> None:
    """Run on, with this signal delivered."""
    if _ptrace(_CONT, tid, 0, signal_number) != 0:
        raise _failed("ptrace cont")


def cont_to_exit(tid: int, signal_number: int = 0) -> None:
    """Run on until the system call returns."""
    if _ptrace(_SYSCALL, tid, 0, signal_number) != 0:
        raise _failed("ptrace syscall")


def listen(tid: int) -> None:
    """Stay in the group-stop until SIGCONT, which then is the next stop."""
    if _ptrace(_LISTEN, tid, 0, 0) != 0:
        raise _failed("ptrace listen")


def event_message(tid: int) -> int:
    """Of an exec's stop: what the thread's number was before."""
    if _ptrace(_GETEVENTMSG, tid, 0, _word_at) != 0:
        raise _failed("ptrace geteventmsg")
    return _word.value


def entry(tid: int) -> Entry:
    """At the stop of a seccomp filter."""
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _info_at) < 0:
        raise _failed("ptrace get_syscall_info")
    op, audit, number, a, b, c, d, e, f, mark = _SECCOMP_INFO.unpack_from(_info)
    if op != _INFO_SECCOMP:
        raise OSError(errno.EINVAL, "the thread is in another stop", "ptrace get_syscall_info")
    return Entry(audit, number, (a, b, c, d, e, f), mark)


def returned(tid: int) -> int:
    """At the stop of a system call's exit: its result, or the negative errno. ERESTART* (512 to 516) are shown: the
    call will begin anew or end as EINTR once the signal is delivered."""
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _info_at) < 0:
        raise _failed("ptrace get_syscall_info")
    op, result = _EXIT_INFO.unpack_from(_info)
    if op != _INFO_EXIT:
        raise OSError(errno.EINVAL, "the thread is in another stop", "ptrace get_syscall_info")
    return int(result)


def set_result(tid: int, value: int) -> None:
    """At the stop of a system call's exit: what the program gets."""
    if _ARM:
        _set_arm_register(tid, 0, value)
    else:
        _poke_user(tid, _RAX, value)


def skip(tid: int, value: int) -> None:
    """At the stop of a seccomp filter: do not make the call, its result is ``value``. It will not be restarted."""
    if _ARM:
        _set_arm_register(tid, 0, value)
        number = struct.pack("=i", -1)
        _regset(_SETREGSET, tid, _NT_ARM_SYSTEM_CALL, ctypes.create_string_buffer(number, 4))
    else:
        _poke_user(tid, _RAX, value)
        _poke_user(tid, _ORIG_RAX, -1)


def set_first_argument(tid: int, value: int, *, wide: bool) -> None:
    """At the stop of a seccomp filter."""
    if _ARM:
        _set_arm_register(tid, 0, value)
    else:
        _poke_user(tid, _RDI if wide else _RBX, value)


def set_i386_call(tid: int, number: int, first: int, second: int, third: int) -> None:
    """Another system call of 32-bit x86, or after its exit the registers that the program had."""
    for register, value in ((_RBX, first), (_RCX, second), (_RDX, third), (_ORIG_RAX, number)):
        _poke_user(tid, register, value)


def poke(tid: int, address: int, value: int) -> None:
    """Write a 64-bit word, to read-only memory as well."""
    if _ptrace(_POKEDATA, tid, address, value) != 0:
        raise _failed("ptrace poke")


def _poke_user(tid: int, offset: int, value: int) -> None:
    if _ptrace(_POKEUSER, tid, offset, value) != 0:
        raise _failed("ptrace pokeuser")


def _set_arm_register(tid: int, index: int, value: int) -> None:
    registers = ctypes.create_string_buffer(34 * 8)  # x0–x30, sp, pc, pstate
    _regset(_GETREGSET, tid, _NT_PRSTATUS, registers)
    struct.pack_into("=Q", registers, 8 * index, value & 0xFFFFFFFFFFFFFFFF)
    _regset(_SETREGSET, tid, _NT_PRSTATUS, registers)


def _regset(request: int, tid: int, kind: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), len(buffer))
    if _ptrace(request, tid, kind, ctypes.addressof(vector)) != 0:
        raise _failed("ptrace regset")


def read(tid: int, address: int, size: int) -> bytes:
    """``size`` bytes of the thread's memory. EFAULT unless all are there; EPERM: it made itself undumpable."""
    if size <= _SMALL:
        buffer_at = _small_at
    else:
        buffer = ctypes.create_string_buffer(size)
        buffer_at = ctypes.addressof(buffer)
    _transfer_all(_libc.process_vm_readv, tid, buffer_at, address, size)
    return ctypes.string_at(buffer_at, size)


def write(tid: int, address: int, data: bytes) -> None:
    """Into the thread's memory, where it could write itself: EFAULT, with a part perhaps written."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _transfer_all(_libc.process_vm_writev, tid, ctypes.addressof(buffer), address, len(data))


def _transfer_all(call: ctypes._NamedFuncPointer, tid: int, ours: int, theirs: int, size: int) -> None:
    while size > 0:
        _local[:] = [ours, size]
        _remote[:] = [theirs, size]
        done = call(tid, _local_at, 1, _remote_at, 1, 0)
        if done < 0:
            raise _failed("process_vm")
        if done == 0:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT), "process_vm")
        ours, theirs, size = ours + done, theirs + done, size - done  # the kernel stops at a page that is not there


def is_process(tid: int) -> bool:
    """Whether ``tid`` is a process's first thread, by whose number the process is known. 1 µs. False: gone, too."""
    if _libc.syscall(_TGKILL, tid, tid, 0) == 0:
        return True
    return ctypes.get_errno() == errno.EPERM  # asked only after the numbers have been found to belong together


def child_signal_fd() -> int:
    """A descriptor that is readable while SIGCHLD is pending, which must be blocked. Non-blocking, close-on-exec."""
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGCHLD - 1))  # sigset_t of both C libraries has 128 bytes
    fd: int = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _failed("signalfd")
    return fd
