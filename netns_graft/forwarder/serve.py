"""The forwarder's process: one asyncio loop until the workload is over.

When that is, its ``Life`` says: a supervisor's word for ``exec``, the last process's end for a container. How flows
reach us is the ``Way``'s: over a cable (``packets``) or out of the calls of traced programs (``calls``).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from netns_graft.attribution import AttributionMethod
from netns_graft.dialling import Upstreams
from netns_graft.dns.by_proxy import reach_by
from netns_graft.dns.resolv_conf import ResolvConf
from netns_graft.dns.service import DnsService
from netns_graft.dns.synthetic import SyntheticPool
from netns_graft.forwarder.core import Forwarder
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.life import Life
from netns_graft.forwarder.names import Names
from netns_graft.forwarder.reactor import Reactor
from netns_graft.forwarder.status import Answer, Message, Recent, StatusSocket
from netns_graft.forwarder.verdict import Judge
from netns_graft.forwarder.way import Way
from netns_graft.journal import Journal, Tally
from netns_graft.policy import Policy
from netns_graft.policy.address_lists import ProxyLists

_SWEEP = 1.0  # seconds between looks at abandoned handshakes


@dataclass(slots=True)
class Settings:
    """What one workload's forwarder works by. ``policy_text`` and ``upstream_text`` are for people.

    ``resolvers_by_proxy``: ``resolvers`` are asked through ``upstreams``. ``shares_host``: see ``Judge``.
    """

    kind: str  # "exec", "container", "build"
    policy: Policy
    upstreams: Upstreams
    dns: Literal["synthetic", "forward", "off"]
    journal: Journal | None
    policy_text: str = ""
    upstream_text: str = ""
    resolvers: str | ResolvConf = "/etc/resolv.conf"
    container_id: str | None = None
    container_name: str | None = None
    attribution: AttributionMethod = "auto"
    lists: ProxyLists | None = None
    resolvers_by_proxy: bool = False
    shares_host: bool = False


def prepare(settings: Settings) -> None:
    """Load what the first DNS question would wait for (60 ms)."""
    if settings.dns != "off":
        DnsService(settings.dns, SyntheticPool()).prepare()


def serve(way: Way, settings: Settings, life: Life, status: Callable[[str], StatusSocket | None]) -> None:
    """Run until ``life`` says that the workload is over. ``status`` gives the socket for a workload's name."""
    asyncio.run(_Service(way, settings, life, status).run())


class _Service:
    """One run of a forwarder; what ``life.Running`` promises."""

    over: asyncio.Future[None]

    def __init__(
        self, way: Way, settings: Settings, life: Life, status: Callable[[str], StatusSocket | None]
    ) -> None:
        self._way = way
        self._settings = settings
        self._life = life
        self._open_status = status
        self._status: StatusSocket | None = None
        self.workload_ns = way.workload_ns
        self._tally = Tally()
        self._recent = Recent()
        self._root_pid: int | None = None
        self._began = time.time()
        self._answers: dict[str, Answer] = {"status": self._tell}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: _fail_closed(context))
        self.over = loop.create_future()
        settings = self._settings
        reactor = Reactor(loop)
        names = None
        async with asyncio.TaskGroup() as tasks:
            self._jobs = jobs = Jobs(tasks)
            if settings.dns != "off":
                service = DnsService(
                    settings.dns, SyntheticPool(), settings.resolvers, allows=_allows(settings.policy),
                    reach=reach_by(settings.upstreams) if settings.resolvers_by_proxy else None,
                )  # fmt: skip
                names = Names(service, self._way.resolvers, jobs)
            self._forwarder = Forwarder(
                workload=settings.kind,
                container_of=self._life.container_of,
                judge=Judge(
                    settings.policy, settings.upstreams, names.name_of if names else lambda _address: None,
                    lists=settings.lists, shares_host=settings.shares_host,
                ),
                attributor=self._way.attributor(settings.attribution, _later),
                journal=settings.journal,
                tally=self._tally,
                recent=self._recent,
                serve_dns=names.serve_attempt if names else None,
                jobs=jobs,
                reactor=reactor,
            )
            if names is not None:
                names.attach(self._forwarder, reactor)
            self._forwarder.open(self._way.open(self._forwarder, names, reactor))
            self._answers |= self._life.watch(self)
            jobs.create_task(_sweep_for_ever(self._forwarder))
            await self.over
            self._life.end()
            self._forwarder.stop()
            jobs.stop()
        self._forwarder.close()
        if names is not None:
            names.close()
        settings.upstreams.close()
        reactor.close()
        if settings.journal is not None:
            settings.journal.close()
        self._life.farewell(self._tally)
        if self._status is not None:
            self._status.close()

    def started(self, name: str, pid: int) -> None:
        self._way.started(pid)
        self._root_pid = pid
        self._forwarder.workload = name
        self._status = self._open_status(name)
        if self._status is not None:
            self._status.serve(self._jobs, self._recent, self._answers)

    def end_workload(self) -> None:
        self._way.end_workload()

    async def _tell(self, _question: Message) -> Message:
        settings, tally, recent = self._settings, self._tally, self._recent
        under_way, sent, received = self._forwarder.under_way()
        return {
            "name": self._forwarder.workload,
            "kind": settings.kind,
            "container_id": settings.container_id,
            "container_name": settings.container_name,
            "members": self._life.members(),
            "mode": self._way.mode,
            "policy": settings.policy_text,
            "upstream": settings.upstream_text,
            "dns": settings.dns,
            "hold": self._way.hold,
            "started": self._began,
            "pid": os.getpid(),
            "workload_pid": self._root_pid,
            "network_namespace": self.workload_ns,
            "flows": {
                "open": under_way,
                "total": tally.total,
                "denied": tally.denied,
                "unattributed": tally.unattributed,
                "questions": tally.questions,
            },
            "bytes": {"sent": recent.bytes_sent + sent, "received": recent.bytes_received + received},
        }


def _later(seconds: float, work: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, work)


def _allows(policy: Policy) -> Callable[[str], tuple[bool, str]]:
    def allows(name: str) -> tuple[bool, str]:
        decision = policy.may_ask(name)
        return decision.allow, decision.rule

    return allows


async def _sweep_for_ever(forwarder: Forwarder) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        forwarder.sweep()


def _fail_closed(context: dict[str, object]) -> None:
    """An error that nobody expected, in a callback. Going on would be a guess; ending takes the network away."""
    error = context.get("exception")
    if os.environ.get("NETNS_GRAFT_DEBUG") and isinstance(error, BaseException):
        import traceback

        traceback.print_exception(error)
    text = f"netns-graft: error: internal error in the forwarder: {error or context.get('message')!r}\n"
    os.write(2, text.encode(errors="replace"))
    os._exit(125)

