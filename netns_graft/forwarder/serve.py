"""The forwarder's process, once F and W exist: one asyncio loop until the workload has ended.

``channel`` is the supervisor's: it says which process is the workload's first, and when to finish; its end of file
means that the supervisor was killed, and then nothing of the workload may stay.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from netns_graft.attribution import Attributor
from netns_graft.dialling import Upstreams
from netns_graft.dns.service import DnsService
from netns_graft.dns.synthetic import SyntheticPool
from netns_graft.forwarder.core import Forwarder
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.names import Names
from netns_graft.forwarder.reactor import Reactor
from netns_graft.forwarder.verdict import Judge
from netns_graft.journal import Journal, Tally
from netns_graft.linux import proc
from netns_graft.linux.cable import Wiring
from netns_graft.policy import Policy

_SWEEP = 1.0  # seconds between looks at abandoned handshakes
_CHUNK = 60_000  # bytes of the tally per message


@dataclass(slots=True)
class Settings:
    """What one workload's forwarder works by."""

    kind: str  # with the first process's pid it names the workload: "exec" → "exec-4242"
    policy: Policy
    upstreams: Upstreams
    dns: Literal["synthetic", "forward", "off"]
    journal: Journal | None


def prepare(settings: Settings) -> None:
    """Load what the first DNS question would wait for (60 ms)."""
    if settings.dns != "off":
        DnsService(settings.dns, SyntheticPool()).prepare()


def serve(wiring: Wiring, settings: Settings, channel: socket.socket) -> None:
    """Run until the supervisor says "finish" or is gone."""
    asyncio.run(_serve(wiring, settings, channel))


async def _serve(wiring: Wiring, settings: Settings, channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bool] = loop.create_future()
    loop.set_exception_handler(lambda _loop, context: _fail_closed(context))
    workload_ns = os.fstat(wiring.workload_ns_fd).st_ino
    attributor = Attributor(wiring.diag_sock, workload_ns, wiring.workload_link)
    tally = Tally()
    reactor = Reactor(loop)
    names = None
    async with asyncio.TaskGroup() as tasks:
        jobs = Jobs(tasks)
        if settings.dns != "off":
            service = DnsService(settings.dns, SyntheticPool(), allows=_allows(settings.policy))
            names = Names(service, wiring.resolvers, jobs)
        forwarder = Forwarder(
            wiring,
            workload=settings.kind,
            judge=Judge(settings.policy, settings.upstreams, names.name_of if names else lambda _address: None),
            attributor=attributor,
            journal=settings.journal,
            tally=tally,
            serve_dns=names.serve_attempt if names else None,
            jobs=jobs,
            reactor=reactor,
        )
        if names is not None:
            names.attach(forwarder, reactor)
        channel.setblocking(False)
        started = partial(_started, settings, attributor, forwarder)
        loop.add_reader(channel.fileno(), _on_message, channel, started, over)
        jobs.create_task(_sweep_for_ever(forwarder))
        finished = await over
        loop.remove_reader(channel.fileno())
        if not finished:
            end_everyone_in(workload_ns)
        forwarder.stop()
        jobs.stop()
    forwarder.close()
    if names is not None:
        names.close()
    settings.upstreams.close()
    reactor.close()
    if settings.journal is not None:
        settings.journal.close()
    if finished:
        _report(channel, tally)


def _allows(policy: Policy) -> Callable[[str], tuple[bool, str]]:
    def allows(name: str) -> tuple[bool, str]:
        decision = policy.may_ask(name)
        return decision.allow, decision.rule

    return allows


def _started(settings: Settings, attributor: Attributor, forwarder: Forwarder, pid: int) -> None:
    attributor.started(pid)
    forwarder.workload = f"{settings.kind}-{pid}"


def _on_message(channel: socket.socket, started: Callable[[int], None], over: asyncio.Future[bool]) -> None:
    try:
        data = channel.recv(4096)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if data.startswith(b"started "):
        started(int(data.split()[1]))
    elif not over.done():
        over.set_result(data == b"finish")


async def _sweep_for_ever(forwarder: Forwarder) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        forwarder.sweep()


def _report(channel: socket.socket, tally: Tally) -> None:
    channel.setblocking(True)
    data = tally.to_json().encode()
    try:
        for start in range(0, len(data), _CHUNK):
            channel.send(data[start : start + _CHUNK])
    except OSError:
        pass  # the supervisor is gone: nobody wants the table


def end_everyone_in(workload_ns: int) -> None:
    """SIGKILL to every process in the network namespace with this inode, until none is left (or we may not)."""
    for _ in range(50):
        left = [pid for pid in proc.pids() if pid != os.getpid() and proc.network_namespace(pid) == workload_ns]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _fail_closed(context: dict[str, object]) -> None:
    """An error that nobody expected, in a callback. Going on would be a guess; ending takes the network away."""
    error = context.get("exception")
    if os.environ.get("NETNS_GRAFT_DEBUG") and isinstance(error, BaseException):
        import traceback

        traceback.print_exception(error)
    text = f"netns-graft: error: internal error in the forwarder: {error or context.get('message')!r}\n"
    os.write(2, text.encode(errors="replace"))
    os._exit(125)

