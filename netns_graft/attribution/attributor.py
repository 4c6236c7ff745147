"""The whole answer for one flow: origin, holder, portrait."""

from __future__ import annotations

import time
from typing import Literal

from netns_graft.attribution.holders import Holder, HolderFinder
from netns_graft.attribution.origin import OriginFinder, endpoint
from netns_graft.attribution.portrait import Portraits
from netns_graft.attribution.sharing import Later, Sharing
from netns_graft.flow import Attribution
from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.sock_diag import SocketOwner
from netns_graft.linux.vantage import Vantage

AttributionMethod = Literal["auto", "sock_diag", "proc"]


class Attributor:
    """Answers for one workload. Owns ``vantage``, which looks into W.

    ``method`` says how sockets are looked up: "sock_diag", "proc", or "auto" for the first unless the kernel refuses
    it. ``later`` (asyncio's call_later) is for what may wait, see ``sharing``; ``careful``: the process must be
    final when ``who`` returns, for the verdict depends on it.
    """

    def __init__(
        self,
        vantage: Vantage,
        *,
        method: AttributionMethod = "auto",
        later: Later | None = None,
        careful: bool = False,
    ) -> None:
        self._origins = OriginFinder(
            vantage, "proc" if method == "proc" else "sock_diag", may_change=method == "auto"
        )
        self._holders = HolderFinder({vantage.inode})
        self._portraits = Portraits()
        self._sharing = Sharing(self._holders, self._portraits, later, careful=careful)

    def started(self, root_pid: int) -> None:
        """The workload's first process runs; before, nobody can have opened anything."""
        self._portraits.root_pid = root_pid

    def who(
        self,
        protocol: int,
        source: bytes,
        source_port: int,
        target: bytes,
        target_port: int,
        since: float | None = None,
    ) -> Attribution:
        """The process whose socket sent what arrived from W with these addresses (packed). Never raises.

        ``since``: when the packet had surely arrived (monotonic seconds, now unless told). Flows that arrived
        together may give one moment, and share the full scans.
        """
        begin = time.perf_counter_ns()
        if since is None:
            since = time.monotonic()
        wire = Tuple(source, source_port, target, target_port)
        origin = self._origins.find(protocol, wire, since)
        attribution = Attribution(None, self._origins.method, 0, tuple(origin.nat))
        if origin.own is not wire:
            if origin.own[:2] != wire[:2]:
                attribution.source = endpoint(*origin.own[:2])
            if origin.own[2:] != wire[2:]:
                attribution.asked = endpoint(*origin.own[2:])
        held = self._holder(origin.owners, origin.namespace, since)
        if held is not None:
            owner, holder = held
            holder, certain = self._sharing.opener(owner.inode, holder, protocol)
            attribution.process = self._portraits.take(holder.pid, owner.uid, self._holders.sitter(holder.pid))
            self._sharing.complete(attribution, owner.inode, holder, certain=certain)
        attribution.micros = (time.perf_counter_ns() - begin) // 1000
        return attribution

    def sweep(self) -> None:
        """Once a second or so: let go of what has ended."""
        self._origins.sweep()
        self._holders.sweep()

    def close(self) -> None:
        self._sharing.close()
        self._portraits.close()
        self._origins.close()
        self._holders.close()

    def _holder(self, owners: list[SocketOwner], namespace: int, since: float) -> tuple[SocketOwner, Holder] | None:
        """Who holds the sender. Of several possible senders all must be held by one process, or nobody knows."""
        if len(owners) == 1:
            holder = self._holders.find(owners[0].inode, namespace, since)
            return (owners[0], holder) if holder is not None else None
        answers = []
        for owner in owners:
            holder = self._holders.find(owner.inode, namespace, since)
            if holder is None:
                return None
            answers.append((owner, holder))
        if len({holder.pid for _owner, holder in answers}) != 1:
            return None
        return answers[0]
