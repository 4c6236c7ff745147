"""A flow between its beginning and its relay (or its refusal), whichever door it came by.

A *door* is how flows reach the forwarder: as packets on the workload's cable (``packets``), or as system calls of a
traced program (``calls``). What the program is told, and how, only its door knows.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from netns_graft.flow import Flow
from netns_graft.wire.packet import Syn


class Attempt:
    """One flow on its way. ``ends`` as the wire shows them, packed; the subclass is its door's."""

    __slots__ = ("dialling", "dns", "early", "ended", "ends", "entered", "flow", "over", "upstream_sock", "watched")

    def __init__(self, flow: Flow, ends: Syn) -> None:
        self.flow = flow
        self.ends = ends
        self.upstream_sock: socket.socket | None = None
        self.early = b""  # what the destination said with the proxy's last reply
        self.entered = False  # the program is told the outcome, or about to be
        self.over = False  # refused or abandoned, whatever a dial that is still under way will say
        self.dns = False  # a conversation with our own resolver
        self.watched = False  # is the program's end in the reactor already?
        self.ended: Callable[[], None] | None = None  # the door wants to know when the relay has
        self.dialling: asyncio.Task[None] | None = None

    def let_in(self) -> None:
        """The upstream answered: now the program may be told. The door calls ``Forwarder.enter`` when it was."""
        raise NotImplementedError

    def refuse(self, number: int) -> None:
        """``number`` is the errno that the program's connect() shall give."""
        raise NotImplementedError

    def drop(self) -> None:
        """It has no future: forget it, and close what only the door knows of."""
        raise NotImplementedError


class Door(Protocol):
    def sweep(self) -> None:
        """Once a second: give up what the program began and left."""

    def close(self) -> None:
        """Every flow is finished: close what flows came by."""
