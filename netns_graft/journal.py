"""The record of flows: one JSON object per line while the workload runs, and a tally for the end.

Whole lines, always: a line is one ``write(2)`` on an ``O_APPEND`` descriptor, so several grafts may share a
file. A write that the disk cuts short is ended before the next line begins. The JSON is ASCII: a program's
name that is not UTF-8 comes out as lone ``\\udcXX`` escapes, which Python's ``os.fsencode`` turns back into
the bytes.

A journal that cannot be written to is an error before the command starts. Later on it is told once and
counted, for a full disk must not take the workload's network away.
"""

from __future__ import annotations

import json
import os
from dataclasses import astuple, dataclass
from typing import Any

from netns_graft.errors import ConfigError
from netns_graft.flow import Flow, Outcome

_STDERR = 2


class Journal:
    """Appends to ``path``; ``"-"`` is stderr. Owns its descriptor. ``lost`` counts records that could not
    be kept.
    """

    def __init__(self, path: str) -> None:
        """Opens at once. ``ConfigError`` (status 125) when that fails."""
        self.lost = 0
        self._path = path
        self._torn = False  # the file ends in the middle of a line
        if path == "-":
            self._fd = _STDERR
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            self._fd = os.open(path, flags, 0o600)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            missing = isinstance(error, FileNotFoundError) and os.path.dirname(path)
            hint = f"make the directory first: mkdir -p {os.path.dirname(path)}" if missing else None
            raise ConfigError(f"cannot write to {path!r}: {reason}", where="--flows", hint=hint) from None

    def write(self, flow: Flow) -> None:
        """Append one flow. Never raises."""
        line = json.dumps(flow.record()).encode("ascii") + b"\n"
        if self._torn:
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):  # once round, but for a nearly full disk
                written += os.write(self._fd, line[written:])
        except OSError as error:
            self._torn = written > 0 or self._torn
            self._report(error)
        else:
            self._torn = False

    def close(self) -> None:
        if self._fd > _STDERR:
            os.close(self._fd)
        self._fd = -1

    def _report(self, error: OSError) -> None:
        self.lost += 1
        if self.lost > 1 or self._fd == _STDERR:
            return
        text = f"netns-graft: warning: --flows: {self._path!r}: {error.strerror}; flows are missing from it\n"
        try:
            os.write(_STDERR, text.encode(errors="backslashreplace"))
        except OSError:
            pass  # nobody is listening there either


@dataclass(slots=True)
class Group:
    """Flows that are one line of the summary. ``destination`` is ``host:port``, or the name that DNS was
    asked for.

    ``rule`` and ``error`` are those of the latest flow. Bytes and ``seconds`` are sums.
    """

    process: str | None
    pid: int | None
    destination: str
    protocol: str
    verdict: str
    upstream: str | None
    outcome: str
    rule: str = ""
    error: str | None = None
    count: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0


class Tally:
    """What the summary needs of all flows, in bounded memory: at most ``limit`` groups and one for the rest.

    DNS questions that were answered are only counted; those that were denied or failed get a group.
    ``total``, ``denied`` and ``unattributed`` (nobody was found to have opened it) are exact however many
    groups there are; ``denied`` includes DNS questions, the other two do not.
    """

    REST = "(others)"

    def __init__(self, limit: int = 10_000) -> None:
        self.total = 0
        self.denied = 0
        self.unattributed = 0
        self.questions = 0
        self._limit = limit
        self._groups: dict[tuple[Any, ...], Group] = {}

    @property
    def groups(self) -> list[Group]:
        """In the order of their first flow."""
        return list(self._groups.values())

    def add(self, flow: Flow) -> None:
        process = flow.attribution.process if flow.attribution else None
        self.denied += flow.verdict != "allow"
        if flow.protocol == "dns":
            self.questions += 1
            if flow.verdict == "allow" and flow.outcome is Outcome.OK:
                return
        else:
            self.total += 1
            self.unattributed += process is None
        name = None
        if process is not None:
            name = os.path.basename(process.exe or (process.argv[0] if process.argv else "")) or "?"
        pid = process.pid if process else None
        group = self._group(
            name, pid, _destination(flow), flow.protocol, flow.verdict, flow.upstream, flow.outcome.value
        )
        group.rule = flow.rule
        group.error = flow.error[:200] if flow.error else None
        group.count += 1
        group.bytes_sent += flow.bytes_sent
        group.bytes_received += flow.bytes_received
        group.seconds += flow.duration

    def to_json(self) -> str:
        """One line of ASCII, for the pipe from the forwarder to whoever prints."""
        return json.dumps(
            {
                "total": self.total,
                "denied": self.denied,
                "unattributed": self.unattributed,
                "questions": self.questions,
                "groups": [astuple(group) for group in self._groups.values()],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Tally:
        """What ``to_json`` gave. ``ValueError`` for anything else: a forwarder that died in the middle of
        it.
        """
        tally = cls()
        try:
            whole = json.loads(text)
            tally.total, tally.denied = int(whole["total"]), int(whole["denied"])
            tally.unattributed, tally.questions = int(whole["unattributed"]), int(whole["questions"])
            for fields in whole["groups"]:
                group = Group(*fields)
                tally._groups[_key(group)] = group
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a tally: {error}") from None
        return tally

    def _group(
        self,
        process: str | None,
        pid: int | None,
        destination: str,
        protocol: str,
        verdict: str,
        upstream: str | None,
        outcome: str,
    ) -> Group:
        group = Group(process, pid, destination, protocol, verdict, upstream, outcome)
        found = self._groups.get(_key(group))
        if found is None and len(self._groups) >= self._limit:
            # One group for the rest of each verdict, so that denied ones stay apart.
            group = Group(self.REST, None, self.REST, protocol, verdict, None, outcome)
            found = self._groups.get(_key(group))
        if found is None:
            found = self._groups[_key(group)] = group
        return found


def _key(group: Group) -> tuple[Any, ...]:
    return (
        group.process,
        group.pid,
        group.destination,
        group.protocol,
        group.verdict,
        group.upstream,
        group.outcome,
    )


def _destination(flow: Flow) -> str:
    if flow.protocol == "dns":
        return flow.host or flow.destination_address
    host = flow.host or flow.destination_address
    return f"[{host}]:{flow.destination_port}" if ":" in host else f"{host}:{flow.destination_port}"
