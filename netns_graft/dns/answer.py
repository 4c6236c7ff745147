"""How one question ended."""

from __future__ import annotations

from dataclasses import dataclass

from netns_graft.flow import Outcome


@dataclass(slots=True)
class Answer:
    """One question's end: what to send back, and what its record says.

    ``reply`` None: send nothing. ``upstream`` is "synthetic", "hosts", a resolver's "10.0.0.53:53", or None
    where nobody had to be asked. ``allowed`` and ``rule`` are the policy's word on asking, "default" where it
    was not needed. ``error`` names any rcode but NOERROR; with NXDOMAIN the outcome still is OK: that is an
    answer. Bytes that are no question have an empty name, and outcome REFUSED (by us; no rule denied
    anything).
    """

    reply: bytes | None
    name: str
    qtype: str
    outcome: Outcome
    error: str | None
    upstream: str | None
    allowed: bool = True
    rule: str = "default"
