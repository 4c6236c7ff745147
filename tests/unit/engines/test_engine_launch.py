"""An engine as our child: what others see of it. Real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netns_graft.engines.launch import run
from netns_graft.errors import GraftError

ENVIRON = {"PATH": "/usr/bin:/bin"}
PARENT = """
import sys
from netns_graft.engines.launch import run
sys.exit(run("/bin/sh", ["sh", "-c", sys.argv[1]], {"PATH": "/usr/bin:/bin"}))
"""


@contextmanager
def parent_of(script: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose child runs the script; in a group of its own, as a shell would start it."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            yield parent
        finally:
            if parent.poll() is None:
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143)])
def test_its_status_is_ours(script, status):
    assert run("/bin/sh", ["sh", "-c", script], ENVIRON) == status


def test_a_program_that_is_not_there():
    with pytest.raises(GraftError, match="cannot run /nonexistent"):
        run("/nonexistent", ["x"], ENVIRON)


def test_it_gets_the_environment_that_it_is_given(capfd):
    run("/bin/sh", ["sh", "-c", "echo $A-$HOME"], {"A": "b"})
    assert capfd.readouterr().out == "b-\n"


def test_our_signal_mask_is_as_before():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    run("/bin/true", ["true"], ENVIRON)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_it_has_the_mask_that_we_were_called_with(capfd):
    run("/bin/grep", ["grep", "SigBlk", "/proc/self/status"], ENVIRON)
    assert int(capfd.readouterr().out.split()[1], 16) == 0


def test_what_somebody_sends_to_us_reaches_it():
    with parent_of("trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done") as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.terminate()
        assert parent.stdout.readline() == "got\n"
        assert parent.wait() == 7


def test_an_interrupt_from_the_terminal_comes_once():
    """The kernel sends it to the whole group; it must not come twice."""
    script = "n=0; trap 'n=$((n+1))' INT; echo ready; while [ $n = 0 ]; do sleep 0.01; done; sleep 0.1; exit $n"
    controlling, terminal = os.openpty()
    try:
        with subprocess.Popen(
            [
                sys.executable, "-c",
                # A job in the background of a script ignores SIGINT, and so would the shell below.
                "import fcntl, os, signal, termios; signal.signal(signal.SIGINT, signal.default_int_handler);"
                "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);" + PARENT, script,
            ],
            stdin=terminal, stdout=subprocess.PIPE, text=True,
        ) as parent:  # fmt: skip
            assert parent.stdout.readline() == "ready\n"
            os.write(controlling, b"\x03")
            assert parent.wait() == 1
    finally:
        os.close(controlling)
        os.close(terminal)


def test_meanwhile_is_called_while_it_runs():
    calls = []
    assert run("/bin/sh", ["sh", "-c", "sleep 0.1"], ENVIRON, meanwhile=lambda: calls.append(1), every=0.01) == 0
    assert len(calls) >= 3


def test_it_is_interrupted_once_when_meanwhile_says_so():
    script = "n=0; trap 'n=$((n+1))' INT; while [ $n = 0 ]; do sleep 0.01; done; sleep 0.1; exit $n"
    assert run("/bin/sh", ["sh", "-c", script], ENVIRON, meanwhile=lambda: True, every=0.02) == 1
