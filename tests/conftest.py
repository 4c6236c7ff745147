"""What every test keeps: nothing is left behind, and in CI nothing is skipped.

* **Leaks.** Each process that a test starts carries a mark in its environment. After a test none may be left
  that was not there before, in whatever session or namespace it hides, and this process holds as many
  descriptors as before. What is being torn down by the kernel or is dying of SIGKILL gets a moment.
* **Skips.** With ``CI=true`` a skipped test is a failed one: CI has what the tests need, or it is broken.
* **The wheel.** With ``NETNS_GRAFT_WHEEL=1`` the package under test must be the installed one, not the
  tree's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `lab`, whatever the import mode

MARK = f"NETNS_GRAFT_TEST_MARK={uuid.uuid4()}"
GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Marked:
    """A process that this session started, as one line of a failure needs it."""

    pid: int
    started: str  # clock ticks since boot: a pid alone may be used again
    command: str

    def __str__(self) -> str:
        return f"process {self.pid}: {self.command}"


def marked_processes() -> set[Marked]:
    """Every process (this one left out) whose environment at its last exec held our mark."""
    mark = MARK.encode()
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if mark not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/stat") as file:
                started = file.read().rpartition(")")[2].split()[19]
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended meanwhile, or somebody else's
        found.add(Marked(int(entry), started, command))
    return found


def own_descriptors() -> dict[int, str]:
    """What this process holds open, without the descriptor that lists them."""
    held = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            held[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            pass
    return held


def settle(left: Callable[[], set[Any]], seconds: float = GRACE_SECONDS) -> set[Any]:
    """``left()`` once it is empty, or as it is after ``seconds``."""
    deadline = time.monotonic() + seconds
    while (rest := left()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return rest


# A job that a script puts into the background ignores these two, and so would every program that a test starts.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_configure(config: pytest.Config) -> None:
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    if os.environ.get("NETNS_GRAFT_WHEEL") == "1":
        import netns_graft

        if "site-packages" not in netns_graft.__file__:
            raise pytest.UsageError(f"the built wheel is what is tested, and not {netns_graft.__file__}")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No process and no descriptor more than before the test."""
    if "lab_session" in request.fixturenames:
        request.getfixturevalue("lab_session")  # its servers outlive the test: they must be there before it
    processes, descriptors = marked_processes(), own_descriptors()
    yield
    left = settle(lambda: marked_processes() - processes)
    opened = settle(lambda: set(own_descriptors().items()) - set(descriptors.items()), 0.5)
    faults = [str(process) for process in sorted(left, key=lambda p: p.pid)]
    more = len(own_descriptors()) - len(descriptors)
    if more > 0:
        faults += [f"descriptor {fd}: {what}" for fd, what in sorted(opened)]
    if faults:
        pytest.fail("left behind:\n  " + "\n  ".join(faults), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and in CI nothing may be: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, and in CI nothing may be: {report.longrepr}"
    return report
