"""A flow between its first packet and its relay (or its refusal)."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from netns_graft.flow import Flow
from netns_graft.wire.packet import Syn


@dataclass(slots=True, eq=False)
class Attempt:
    """A flow on its way to a relay. Either ``frame`` (its SYN is held) or ``client_sock`` (accepted first) is set."""

    flow: Flow
    syn: Syn
    frame: bytes | None = None
    client_sock: socket.socket | None = None
    upstream_sock: socket.socket | None = None
    early: bytes = b""
    injected: float | None = None  # monotonic seconds: since when the handshake may complete
    sequence: int = 0  # of the held SYN
    over: bool = False  # refused or abandoned, whatever a dial that is still under way will say
    dns: bool = False
    dialling: asyncio.Task[None] | None = None
