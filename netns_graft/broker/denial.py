"""A workload that ends with its first denied flow, as a build does that must not be denied anything.

It is ended here, by the forwarder itself, and not by whoever reads the record: the process that was refused shall not
get so far that what it makes of the refusal becomes a layer of an image. In a build the denial is noted beside the
group's list of steps, for those that follow and for ``netns-graft build``:

* its next RUN is refused;
* where the RUN had ended already when its flow was denied, its farewell waits until the build has been ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from netns_graft.flow import Flow
from netns_graft.forwarder.serve import Settings
from netns_graft.journal import Journal
from netns_graft.policy import Decision, NeedsAddress, Policy, Request

_SECONDS = 10.0  # for a build to be ended; then there is nobody who would
_PAUSE = 0.02


def end_with_the_first(settings: Settings, end: Callable[[], None]) -> None:
    """Have ``end`` called once, with the first denial and before the process hears of it."""
    called = False

    def once() -> None:
        nonlocal called
        if not called:
            called = True
            end()

    settings.policy = _EndingPolicy(settings.policy, once)
    settings.journal = _EndingJournal(settings.journal, once)


class _EndingPolicy(Policy):
    """``policy``, whose every final no is an end."""

    def __init__(self, policy: Policy, end: Callable[[], None]) -> None:
        self._policy = policy
        self._end = end
        self.names_hosts = policy.names_hosts

    def decide(self, request: Request) -> Decision | NeedsAddress:
        decision = self._policy.decide(request)
        # Of a name's addresses one may be denied and the next one allowed; the record says what came of it.
        one_of_several = request.host is not None and request.address is not None
        if isinstance(decision, Decision) and not decision.allow and not one_of_several:
            self._end()
        return decision

    def decide_by_name(self, request: Request) -> Decision:
        return self._heard(self._policy.decide_by_name(request))

    def may_ask(self, name: str) -> Decision:
        return self._heard(self._policy.may_ask(name))

    def _heard(self, decision: Decision) -> Decision:
        if not decision.allow:
            self._end()
        return decision


class _EndingJournal(Journal):
    """Passes flows on to ``journal`` (owned), after the end of a denied one's workload."""

    def __init__(self, journal: Journal | None, end: Callable[[], None]) -> None:
        self.lost = 0
        self._journal = journal
        self._end = end

    def write(self, flow: Flow) -> None:
        if flow.verdict != "allow":
            self._end()
        if self._journal is not None:
            self._journal.write(flow)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def note(group_file: str, step: str, *, late: bool) -> None:
    """That ``step`` was denied something; the first one counts. ``late``: it had ended already. OSError."""
    try:
        fd = os.open(_path(group_file), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    with open(fd, "w", encoding="ascii") as file:
        json.dump({"name": step, "late": late}, file)


def noted(group_file: str) -> dict[str, Any] | None:
    """{"name": the step, "late": …} once a step was denied something."""
    try:
        with open(_path(group_file), encoding="ascii") as file:
            said = json.load(file)
    except (OSError, ValueError):  # not there, or not whole yet
        return None
    return said if isinstance(said, dict) else None


def forget(group_file: str) -> None:
    try:
        os.unlink(_path(group_file))
    except FileNotFoundError:
        pass


def wait_for_the_builds_end(group_file: str) -> None:
    """If a step was denied something when nothing of it was left to be ended: its builder must not go on from here."""
    said = noted(group_file)
    deadline = time.monotonic() + _SECONDS
    while said is not None and said.get("late") and os.path.exists(group_file) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _path(group_file: str) -> str:
    return f"{group_file}.denied"
