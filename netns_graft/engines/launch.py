"""An engine as our child, to be seen from outside as if it had been called itself.

It is in our process group, so what the terminal sends reaches it without us; what somebody sends to *us* is passed
on. ``si_code`` tells the two apart: positive is the kernel's. SIGTSTP and SIGSTOP stop both, as the group's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence

from netns_graft.errors import GraftError

_PASSED_ON = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
)  # fmt: skip
_WATCHED = frozenset({*_PASSED_ON, signal.SIGCHLD})


def run(
    path: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    meanwhile: Callable[[], bool] | None = None,
    every: float = 0.2,
) -> int:
    """Run the program to its end; its status as a shell shows it, 128+N for signal N.

    ``meanwhile`` is called ``every`` so many seconds while it runs; the first time that it says True, the program is
    sent SIGINT. ``GraftError`` when it cannot be started.
    """
    interrupted = False
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        defaults = [signal.SIGPIPE, signal.SIGXFSZ] + ([] if ignored else [signal.SIGINT])
        try:
            pid = os.posix_spawn(path, list(argv), environ, setsigmask=before, setsigdef=defaults)
        except OSError as error:
            raise GraftError(f"cannot run {path}: {error.strerror}") from None
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if meanwhile is None:
                _pass_on(signal.sigwaitinfo(_WATCHED), pid)
                continue
            _pass_on(signal.sigtimedwait(_WATCHED, every), pid)
            if meanwhile() and not interrupted:
                interrupted = True
                _send(pid, signal.SIGINT)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pass_on(info: signal.struct_siginfo | None, pid: int) -> None:
    """Hand a signal on if it was meant for the child."""
    # A terminal that closes may tell its session leader alone, and that may be us.
    if info is None or info.si_signo == signal.SIGCHLD or (info.si_code > 0 and info.si_signo != signal.SIGHUP):
        return
    _send(pid, info.si_signo)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
