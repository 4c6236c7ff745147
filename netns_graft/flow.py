"""The plain data that every layer speaks about: a flow, who opened it, and how it ended.

A *flow* is one conversation that a workload tried to have: a TCP connection, or one DNS question. These are hot
records (one each per connection), hence slotted dataclasses; ``Flow.record`` gives the JSON object of the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a flow ended, in the contract's words."""

    OK = "ok"
    DENIED = "denied"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    RESET = "reset"
    UPSTREAM_FAILED = "upstream-failed"
    UPSTREAM_AUTH = "upstream-auth"
    WORKLOAD_GONE = "workload-gone"


@dataclass(slots=True, frozen=True)
class Parent:
    """One ancestor of a process: enough to recognise it."""

    pid: int
    exe: str | None


@dataclass(slots=True, frozen=True)
class Sharer:
    """Another process that holds the flow's socket as well."""

    pid: int
    exe: str | None


@dataclass(slots=True, frozen=True)
class Process:
    """The process that holds a flow's socket, as seen when it connected.

    Of several holders it is the one that was in connect(), else the eldest; ``shared_with`` are the others.
    ``exe`` and ``argv`` are decoded with ``surrogateescape``, so names that are not UTF-8 survive; ``uid`` is the
    owner of the socket in the caller's (host) numbering. ``parents`` goes from the direct parent outwards and ends
    at the workload's first process.
    """

    pid: int
    exe: str | None
    argv: tuple[str, ...]
    uid: int
    parents: tuple[Parent, ...] = ()
    container_pid: int | None = None
    shared_with: tuple[Sharer, ...] = ()


@dataclass(slots=True, frozen=True)
class Endpoint:
    """An address, as text, and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(slots=True, frozen=True)
class NatStep:
    """One address translation undone, newest first: ``seen`` was on the wire, ``real`` is nearer to the socket."""

    seen: str
    real: str


@dataclass(slots=True)
class Attribution:
    """Who opened a flow, how that was found, and its cost in microseconds. ``process`` None: nobody, never a guess.

    ``source`` is the address of the program's own socket and ``asked`` the destination that it asked for, each None
    where it is what the wire shows. ``process`` may be completed (``shared_with``) while the flow is under way.
    """

    process: Process | None
    method: str
    micros: int
    nat: tuple[NatStep, ...] = ()
    source: Endpoint | None = None
    asked: Endpoint | None = None


@dataclass(slots=True)
class Flow:
    """One flow from its first packet to its record.

    Addresses are text (``"93.184.216.34"``, ``"2606:2800:220:1::1"``), times are seconds: ``started`` since the
    epoch, ``duration`` as measured by the monotonic clock. Bytes are counted as the program sees them: ``sent`` left
    the workload. ``upstream`` is a label without credentials.
    """

    id: str
    workload: str
    protocol: str
    source_address: str
    source_port: int
    destination_address: str
    destination_port: int
    started: float
    host: str | None = None
    host_source: str | None = None
    resolved: str | None = None
    container_id: str | None = None
    attribution: Attribution | None = None
    verdict: str = "deny"
    rule: str = "default"
    upstream: str | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    duration: float = 0.0
    outcome: Outcome = Outcome.OK
    error: str | None = None
    ticks: float = field(default=0.0, repr=False)  # monotonic seconds at the first packet

    def record(self) -> dict[str, Any]:
        """The flow record of the contract, schema 1, ready for ``json.dumps``."""
        who = self.attribution
        process = who.process if who else None
        source = (who and who.source) or Endpoint(self.source_address, self.source_port)
        return {
            "schema": 1,
            "id": self.id,
            "workload": self.workload,
            "container_id": self.container_id,
            "started": datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "duration": round(self.duration, 6),
            "protocol": self.protocol,
            "source": {"address": source.address, "port": source.port},
            "destination": {
                "address": self.destination_address,
                "port": self.destination_port,
                "host": self.host,
                "host_source": self.host_source,
                "resolved": self.resolved,
                "asked": str(who.asked) if who and who.asked else None,
            },
            "process": _process_record(process) if process else None,
            "attribution": {
                "method": who.method,
                "nat": [{"from": step.seen, "to": step.real} for step in who.nat],
                "micros": who.micros,
            }
            if who
            else None,
            "verdict": self.verdict,
            "rule": self.rule,
            "upstream": self.upstream,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "outcome": self.outcome.value,
            "error": self.error,
        }


def _process_record(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "container_pid": process.container_pid,
        "exe": process.exe,
        "argv": list(process.argv),
        "uid": process.uid,
        "parents": [{"pid": parent.pid, "exe": parent.exe} for parent in process.parents],
        "shared_with": [{"pid": other.pid, "exe": other.exe} for other in process.shared_with],
    }
