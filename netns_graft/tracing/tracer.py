"""The traced threads, from the first that is seized to the last that ends.

Linux tells of a thread by its number alone, and in no order between threads: a child's first stop may come before
the fork that made it, an exec gives its thread the number of the process's first, and any thread may be killed in any
stop, after which every request says ESRCH. So nothing here is an error: a thread that is gone is gone.

* A stop for a signal: the thread goes on with that very signal, its siginfo kept by the kernel.
* A group-stop (SIGSTOP, Ctrl-Z): the thread stays stopped, PTRACE_LISTEN, and its parent sees it as ever.
* A stop of our filter: ``on_call``, or what concerns tracing itself, done here. A stop of a filter of the program's own
  (RET_TRACE): ENOSYS, which is what the kernel says where nobody traces. To let it go on would let a program lift ours,
  for of two filters that both say "trace" only the newer one's mark is told.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable
from errno import ENOSYS

from netns_graft.linux import proc, ptrace, seccomp
from netns_graft.tracing.call import Call, Returned

_BURST = 64  # stops before others have their turn
_ANY = os.WNOHANG | ptrace.WALL
_GROUP_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_ARCHES = {arch.audit: arch for arches in seccomp.ARCHES.values() for arch in arches}
# What our filter stops. Another name with our mark: a filter of the program's own took the same mark.
_NETWORK = frozenset({
    "connect", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg", "getpeername", "getsockname",
    "getsockopt",
})  # fmt: skip
_CLOSE_SECONDS = 2.0


def _nothing(_pid: int) -> None:
    pass


def _silent(_line: str) -> None:
    pass


class Tracer:
    """Owns a signalfd of SIGCHLD, which it blocks in the calling thread, and which must be the only one to wait for
    children. Everything is for that thread.

    ``on_call`` gets each call of the filter and lets it go now or later. ``on_exec`` and ``on_end`` get the process,
    the latter unless it was killed before it ever ran; ``warn`` one line for the user.
    """

    def __init__(
        self,
        on_call: Callable[[Call], None],
        *,
        on_exec: Callable[[int], None] = _nothing,
        on_end: Callable[[int], None] = _nothing,
        warn: Callable[[str], None] = _silent,
    ) -> None:
        self._on_call, self._on_exec, self._on_end, self._warn = on_call, on_exec, on_end, warn
        self._warned: set[tuple[str, str | None]] = set()
        self._known: dict[int, int] = {}  # thread → its process; 0: ask /proc
        self._calls: dict[int, Call] = {}  # thread → the last call it stopped at
        self.returning: dict[int, tuple[Call, Returned]] = {}
        self._signal_was = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nothing would be told
        self._blocked = signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        self._signal_fd = ptrace.child_signal_fd()

    def fd(self) -> int:
        return self._signal_fd

    def seize(self, pid: int) -> None:
        """Trace process ``pid``, of one thread as yet. OSError when we may not, or somebody else does."""
        ptrace.seize(pid)
        self._known[pid] = pid

    def process_of(self, tid: int) -> int:
        """The process that thread ``tid`` belongs to; the thread itself when it is gone."""
        process = self._known.get(tid, 0)
        if not process and (process := proc.process_of_thread(tid) or 0) and tid in self._known:
            self._known[tid] = process
        return process or tid

    def turn(self, _events: int = 0) -> bool:
        """See to what has happened; True: there may be more, call again."""
        try:
            os.read(self._signal_fd, 256)
        except BlockingIOError:
            pass
        for _ in range(_BURST):
            try:
                tid, status = os.waitpid(-1, _ANY)
            except ChildProcessError:
                return False
            if tid == 0:
                return False
            try:
                self._happened(tid, status)
            except ProcessLookupError:
                pass  # killed meanwhile: its end comes by itself
        return True

    def _happened(self, tid: int, status: int) -> None:
        if status & 0xFF != 0x7F:
            self._ended(tid)
            return
        if tid not in self._known:
            self._known[tid] = tid if ptrace.is_process(tid) else 0
        number, event = status >> 8 & 0xFF, status >> 16
        if event == ptrace.EVENT_SECCOMP:
            self._stopped(tid)
        elif event == ptrace.EVENT_STOP:
            if number in _GROUP_STOPS:
                ptrace.listen(tid)
            else:
                self._resume(tid)
        elif event == ptrace.EVENT_EXEC:
            self._executed(tid)
        elif event:
            self._resume(tid)  # a fork: the child is traced already, and tells of itself
        elif number == ptrace.SYSCALL_STOP:
            self._returned(tid)
        else:
            self._resume(tid, number)

    def _resume(self, tid: int, signal_number: int = 0) -> None:
        if tid in self.returning:
            ptrace.cont_to_exit(tid, signal_number)
        else:
            ptrace.cont(tid, signal_number)

    def _stopped(self, tid: int) -> None:
        entry = ptrace.entry(tid)
        arch = _ARCHES[entry.audit]
        name, args = arch.names.get(entry.number, ""), entry.args
        call = Call(self, tid, name, args, arch.wide)
        self._calls[tid] = call
        if entry.mark != seccomp.MARK:
            call.answer(-ENOSYS)
        elif name in _NETWORK:
            self._on_call(call)
        elif name in ("clone", "clone3"):
            self._keep_traced(call)
        elif name == "socketcall" and args[0] in seccomp.SOCKETCALLS:
            self._unfold(call)
        elif name == "ptrace":
            self._tell_of(call.pid, "ptrace")
            call.go_on()
        else:
            call.answer(-ENOSYS)

    def _unfold(self, call: Call) -> None:
        """socketcall(number, arguments in memory) of 32-bit x86."""
        call.name, words = seccomp.SOCKETCALLS[call.args[0]]
        try:
            args = struct.unpack(f"={words}I", call.read(call.args[1], 4 * words))
        except ProcessLookupError:
            return
        except OSError as error:
            call.answer(-(error.errno or ENOSYS))
            return
        if call.name == "socket":
            self._judged_socket(call, args)
            return
        if call.name in ("sendto", "recvfrom") and args[4] == 0:
            call.go_on()
            return
        if call.name == "getsockopt" and args[1:3] != (1, 4):
            call.go_on()
            return
        call.args = args + (0,) * (6 - words)
        self._on_call(call)

    def _judged_socket(self, call: Call, args: tuple[int, ...]) -> None:
        """Make it socket(2), whose arguments are in registers: the kernel asks the filter anew, which judges them, and
        no other thread of the program can change them any more."""
        number, first, second = seccomp.I386.numbers["socketcall"], call.args[0], call.args[1]
        third = call.args[2]
        ptrace.set_i386_call(call.tid, seccomp.I386.numbers["socket"], *args)

        def put_back(call: Call, _result: int) -> None:
            ptrace.set_i386_call(call.tid, number, first, second, third)

        call.go_on_then(put_back)

    def _keep_traced(self, call: Call) -> None:
        """A clone without CLONE_UNTRACED, by which a child would leave us."""
        if call.name == "clone":
            ptrace.set_first_argument(call.tid, call.args[0] & ~seccomp.CLONE_UNTRACED, wide=call.wide)
            call.go_on()
            return
        address = call.args[0]
        try:
            (flags,) = struct.unpack("=Q", call.read(address, 8))
            if flags & seccomp.CLONE_UNTRACED:
                ptrace.poke(call.tid, address, flags & ~seccomp.CLONE_UNTRACED)
        except ProcessLookupError:
            return
        except PermissionError:
            call.answer(-ENOSYS)  # hidden from us; the C library takes clone instead, whose flags are in a register
            return
        except OSError:
            call.go_on()  # not there: the kernel says EFAULT
            return
        if not flags & seccomp.CLONE_UNTRACED:
            call.go_on()
            return

        def put_back(call: Call, _result: int) -> None:
            try:
                ptrace.poke(call.tid, address, flags)
            except ProcessLookupError:
                raise
            except OSError:
                pass  # unmapped by another thread meanwhile

        call.go_on_then(put_back)

    def _returned(self, tid: int) -> None:
        call, returned = self.returning.pop(tid, (None, None))
        if call is not None and returned is not None:
            value = returned(call, ptrace.returned(tid))
            if value is not None:
                ptrace.set_result(tid, value)
        ptrace.cont(tid)

    def _executed(self, pid: int) -> None:
        """The thread has the process's number now, whatever it had; those of the others are gone."""
        former = ptrace.event_message(pid)
        self._forget_call(pid)
        if former != pid:
            self._forget_call(former)
            self._known.pop(former, None)
            self._known[pid] = pid
        if proc.runs_without_its_set_id(pid):
            self._tell_of(pid, "set-id")
        self._on_exec(pid)
        self._resume(pid)

    def _ended(self, tid: int) -> None:
        self._forget_call(tid)
        if self._known.pop(tid, 0) == tid:
            self._on_end(tid)

    def _forget_call(self, tid: int) -> None:
        call = self._calls.pop(tid, None)
        if call is not None:
            call.end()
        self.returning.pop(tid, None)

    def _tell_of(self, pid: int, what: str) -> None:
        program = proc.exe(pid)
        if (what, program) in self._warned:
            return
        self._warned.add((what, program))
        shown = program or f"process {pid}"
        if what == "ptrace":
            self._warn(f"{shown} wants to trace processes: those of this command are traced by netns-graft already")
        else:
            self._warn(f"{shown} is set-uid or set-gid and runs without those privileges: ptrace mode has none to give")

    def close(self) -> None:
        """Whatever is still traced ends. What we may not kill, for it runs as somebody else, ends with this process."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._known and time.monotonic() < deadline:
            for tid, process in self._known.items():
                if process == tid:
                    _kill(tid)
            if not self._bury():
                signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        for tid in list(self._calls):
            self._forget_call(tid)
        os.close(self._signal_fd)
        if not self._blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, self._signal_was or signal.SIG_DFL)

    def _bury(self) -> bool:
        """One end, or one stop of a thread that is to end. False: nothing to be told at the moment."""
        try:
            tid, status = os.waitpid(-1, _ANY)
        except ChildProcessError:
            self._known.clear()
            return True
        if tid and status & 0xFF == 0x7F:
            self._known.setdefault(tid, tid)
        elif tid:
            self._known.pop(tid, None)
            self._forget_call(tid)
        return tid != 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
