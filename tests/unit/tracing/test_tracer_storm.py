"""Everything at once: threads that call, start threads, exec and exit, in processes that are stopped, continued,
signalled and killed from outside at any moment. The tracer loses nobody and trips over nothing."""

from __future__ import annotations

import errno
import random
import sys

import pytest
from ground.traced import Report, Traced

from netns_graft.tracing.call import Call

STORM = """
import os, random, signal, socket, sys, threading

def worker():
    while True:
        with socket.socket() as sock:
            sock.connect_ex(("127.0.0.1", 9))
        chance = random.random()
        if chance < 0.02:
            threading.Thread(target=os.getpid).start()
        elif chance < 0.025:
            os.execv("/bin/true", ["true"])
        elif chance < 0.028:
            os._exit(3)

random.seed(int(sys.argv[1]))
signals = [signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGCHLD, signal.SIGWINCH, signal.SIGKILL]
for _ in range(6):
    living = []
    for number in range(12):
        pid = os.fork()
        if pid == 0:
            random.seed(number)
            for _ in range(number % 4):
                threading.Thread(target=worker, daemon=True).start()
            worker()
        living.append(pid)
    for _ in range(60):
        os.kill(random.choice(living), random.choice(signals))  # not waited for: a zombie may still be signalled
    for pid in living:
        os.kill(pid, signal.SIGCONT)
    for pid in living[::2]:
        os.kill(pid, signal.SIGKILL)
    for pid in living:
        os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm(seed: int) -> None:
    choice = random.Random(seed)

    def at_random(call: Call, report: Report) -> None:
        chance = choice.random()
        if chance < 0.3:
            call.go_on()
        elif chance < 0.6:
            call.go_on_then(lambda _call, _result: None)
        elif chance < 0.8:
            call.answer(-errno.ETIMEDOUT)
        else:
            try:
                call.sock(call.args[0]).close()
            except ProcessLookupError:
                pass
            call.go_on_then(lambda _call, _result: -errno.ECONNREFUSED)

    traced = Traced([sys.executable, "-IS", "-c", STORM, str(seed)], at_random)
    pid, report = traced.pid, traced.finish()
    # Who is killed before he has run at all is nobody's end.
    assert 1 + 5 * 12 < len(report.ends) == len(set(report.ends)) <= 1 + 6 * 12
    assert report.ends[-1] == pid
    assert {caller for caller, _ in report.calls} | set(report.execs) <= set(report.ends)
    assert report.warnings == []
