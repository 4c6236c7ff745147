"""How a workload's flows reach its forwarder, and what goes with that: who finds processes, who ends the workload."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from netns_graft.attribution import AttributionMethod, Attributor
from netns_graft.attribution.sharing import Later

if TYPE_CHECKING:
    from netns_graft.forwarder.attempt import Door
    from netns_graft.forwarder.core import Forwarder
    from netns_graft.forwarder.names import Names
    from netns_graft.forwarder.reactor import Reactor


class Way(Protocol):
    @property
    def mode(self) -> str:
        """``route`` or ``ptrace``, as ``--mode``."""

    @property
    def hold(self) -> bool:
        """Is a program told that it is connected only when its upstream has answered?"""

    @property
    def workload_ns(self) -> int:
        """The inode of the network namespace that the workload lives in."""

    @property
    def resolvers(self) -> list[socket.socket]:
        """Sockets at which DNS questions arrive by themselves."""

    def attributor(self, method: AttributionMethod, later: Later) -> Attributor | None:
        """Who finds the process of a flow; None: every flow brings its process along."""

    def open(self, forwarder: Forwarder, names: Names | None, reactor: Reactor) -> Door:
        """Once, on the running loop: from now on flows come. ``names`` None: questions are flows like others."""

    def started(self, pid: int) -> None:
        """The workload's first process; it has not begun to run. GraftError: its flows could not reach us."""

    def end_workload(self) -> None:
        """Nothing of the workload may go on."""
