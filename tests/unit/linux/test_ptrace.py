"""Registers, memory and numbers of a stopped thread, against the kernel."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from ground.child import fork, wait
from ground.traced import Report, Traced

from netns_graft.linux import ptrace
from netns_graft.tracing.call import Call

ON_ARM = os.uname().machine == "aarch64"


def test_the_registers_by_regset() -> None:
    """What arm64 needs. Register sets are alike on every machine but for their order: of x86-64's, the tenth is rax."""

    def skip(call: Call, report: Report) -> None:
        ptrace._set_arm_register(call.tid, 0 if ON_ARM else 10, -errno.EHOSTDOWN)
        if not ON_ARM:
            ptrace._poke_user(call.tid, ptrace._ORIG_RAX, -1)
            call.go_on()
        else:
            call.answer(-errno.EHOSTDOWN)

    def work() -> None:
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EHOSTDOWN

    assert [name for _, name in Traced(work, skip).finish().calls] == ["connect"]


def test_another_stop_is_no_system_call() -> None:
    """The exit of a call is not its entry, and the other way round."""

    def look(call: Call, report: Report) -> None:
        with pytest.raises(OSError) as refused:
            ptrace.returned(call.tid)
        report.notes.append(refused.value.errno)

        def returned(call: Call, result: int) -> None:
            with pytest.raises(OSError) as refused:
                ptrace.entry(call.tid)
            report.notes.append(refused.value.errno)

        call.go_on_then(returned)

    def work() -> None:
        with socket.socket() as sock:
            sock.getsockname()

    assert Traced(work, look).finish().notes == [errno.EINVAL, errno.EINVAL]


def test_who_is_not_ours_or_not_there() -> None:
    gone = fork(lambda: None)
    assert wait(gone) == 0
    for request in (ptrace.seize, ptrace.cont, ptrace.cont_to_exit, ptrace.listen, ptrace.entry, ptrace.event_message):
        with pytest.raises(ProcessLookupError) as refused:
            request(gone)
        assert str(refused.value.filename).startswith("ptrace ")
    with pytest.raises(ProcessLookupError):
        ptrace.read(gone, 4096, 1)
    with pytest.raises(ProcessLookupError):
        ptrace.write(gone, 4096, b"x")
