"""Flow records read back: the inverse of ``Flow.record``, for whoever was not there when they were written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from netns_graft.flow import Attribution, Flow, NatStep, Outcome, Parent, Process

_CHUNK = 1 << 20  # bytes


def flow_of(record: Mapping[str, Any]) -> Flow:
    """``ValueError`` for what is no flow record of schema 1."""
    try:
        if record["schema"] != 1:
            raise ValueError(f"a flow record of schema {record['schema']!r}")
        source, destination = record["source"], record["destination"]
        return Flow(
            id=record["id"],
            workload=record["workload"],
            protocol=record["protocol"],
            source_address=source["address"],
            source_port=source["port"],
            destination_address=destination["address"],
            destination_port=destination["port"],
            started=datetime.fromisoformat(record["started"]).timestamp(),
            host=destination["host"],
            host_source=destination["host_source"],
            resolved=destination.get("resolved"),
            container_id=record["container_id"],
            attribution=_attribution(record["attribution"], record["process"]),
            verdict=record["verdict"],
            rule=record["rule"],
            upstream=record["upstream"],
            bytes_sent=record["bytes_sent"],
            bytes_received=record["bytes_received"],
            duration=record["duration"],
            outcome=Outcome(record["outcome"]),
            error=record["error"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a flow record: {error!r}") from None


def _attribution(said: Mapping[str, Any] | None, process: Mapping[str, Any] | None) -> Attribution | None:
    if said is None:
        return None
    who = None
    if process is not None:
        who = Process(
            pid=process["pid"],
            exe=process["exe"],
            argv=tuple(process["argv"]),
            uid=process["uid"],
            parents=tuple(Parent(parent["pid"], parent["exe"]) for parent in process["parents"]),
            container_pid=process["container_pid"],
        )
    nat = tuple(NatStep(step["from"], step["to"]) for step in said["nat"])
    return Attribution(process=who, method=said["method"], micros=said["micros"], nat=nat)


class Reader:
    """Follows a file of records from ``offset`` on. Owns its descriptor. ``OSError`` when it cannot be opened."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._offset = offset
        self._begun = b""  # a line that is not whole yet

    def lines(self) -> Iterator[bytes]:
        """The whole lines that are new since the last call, each with its line feed."""
        while data := os.pread(self._fd, _CHUNK, self._offset):
            self._offset += len(data)
            lines = (self._begun + data).splitlines(keepends=True)
            self._begun = b"" if lines[-1].endswith(b"\n") else lines.pop()
            yield from lines

    def close(self) -> None:
        os.close(self._fd)


def flow_on(line: bytes) -> Flow | None:
    """The flow on a line; None for a line that a full disk has cut short, or that is somebody else's."""
    try:
        record = json.loads(line)
        return flow_of(record) if isinstance(record, dict) else None
    except ValueError:
        return None
