"""The result of one check. Ids and fields are what ``doctor --json`` promises: docs/doctor.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # grafting works, something around it may not
    PROBLEM = "problem"  # grafting cannot work
    UNKNOWN = "unknown"  # could not be looked at


@dataclass(slots=True, frozen=True)
class Finding:
    """``id`` is for scripts and stays; ``evidence`` are lines to print below, such as rules word for word."""

    id: str
    title: str
    status: Status
    detail: str
    cure: str | None = None
    evidence: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "title": self.title,
            "status": self.status.value,
            "detail": self.detail,
            "cure": self.cure,
            "evidence": list(self.evidence),
        }


def reason(error: OSError) -> str:
    """ "permission denied", and the like."""
    return (error.strerror or type(error).__name__).lower()
