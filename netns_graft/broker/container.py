"""The fork that answers one hook: it becomes the forwarder of a container, or helps to say farewell.

The hook gets one line: "ready", or "refused" and why. Whatever goes wrong before "ready" is a refusal, and the
container does not start. After it, only the container's end ends us.

Two hooks may fight over one W. The kernel lets one of them make ``eth0``; the other finds W taken, by a graft whose
socket tells W's inode, and joins it. That is also how the members of a pod come in, one after the other.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from functools import partial

from netns_graft.broker import denial, handover, workloads
from netns_graft.broker.bundle import Bundle, name_in, read_bundle
from netns_graft.broker.handover import Handover
from netns_graft.broker.lifetime import ContainerLife, Member
from netns_graft.broker.request import LINE_LIMIT, HookRequest, parse_request
from netns_graft.errors import GraftError
from netns_graft.forwarder.packets import ByPackets
from netns_graft.forwarder.serve import Settings, serve
from netns_graft.forwarder.status import StatusSocket
from netns_graft.graft.builder import BuildError, SpareBuilder, build_in_child
from netns_graft.linux import control_sockets, places, proc, syscalls, workload
from netns_graft.linux.cable import Wiring
from netns_graft.linux.workload import Workload
from netns_graft.options import GraftOptions
from netns_graft.settings import settings_for

LOG_LIMIT = 1 << 20  # bytes
_QUESTION_SECONDS = 5.0
_READY_SECONDS = 60  # whoever is not ready by then is ended: the hook has given up long before
_CONTEST_SECONDS = 3.0  # for a former graft of W to go, or a rival's to be ready
_PAUSE = 0.01


class _Taken(Exception):
    """Another graft is in W, or was a moment ago: the name of its interface is there."""


@dataclass(slots=True)
class Answering:
    """One hook's question. Owns ``hook_sock``."""

    hook_sock: socket.socket
    runtime: str
    spare: SpareBuilder | None = None  # owned
    who: str = "?"
    status: StatusSocket | None = None
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Answer, and be the forwarder if it comes to that. The process's exit status."""
        signal.alarm(_READY_SECONDS)
        try:
            request, hook_pid = self._question()
            self.who = request.short_id
            if request.stage == "poststop":
                self._farewell(request)
                self._answer("ready")
                return 0
            self._graft(request, hook_pid)
        except GraftError as error:
            self._refuse(f"{error}; {error.hint}" if error.hint else str(error))
            return 1
        except OSError as error:
            self._refuse(f"{error.filename or 'internal error'}: {error.strerror or error}")
            return 1
        except Exception as error:  # noqa: BLE001  # the end of the process; one line says why
            if os.environ.get("NETNS_GRAFT_DEBUG"):
                sys.excepthook(*sys.exc_info())
            self._refuse(f"internal error: {type(error).__name__}: {error}")
            return 1
        finally:
            self._close_spare()
            if self.status is not None:
                self.status.abandon()
        return 0

    # The hook

    def _question(self) -> tuple[HookRequest, int]:
        self.hook_sock.settimeout(_QUESTION_SECONDS)
        reason = control_sockets.refusal(self.hook_sock)
        if reason is not None:
            raise GraftError(reason)
        parts: list[bytes] = []
        size = 0
        while not parts or b"\n" not in parts[-1]:
            part = self.hook_sock.recv(1 << 18)
            size += len(part)
            if not part or size > LINE_LIMIT:
                raise GraftError("the state is too long" if part else "the state is cut short")
            parts.append(part)
        return parse_request(b"".join(parts)), control_sockets.peer(self.hook_sock)[0]

    def _answer(self, line: str) -> None:
        """A hook that has gone is no error: its engine has given the container up, and we see that end."""
        try:
            self.hook_sock.sendall(line.replace("\n", " ").encode(errors="replace") + b"\n")
        except OSError:
            pass
        self.hook_sock.close()

    def _refuse(self, reason: str) -> None:
        tell(f"{self.who}: refused: {reason}")
        self._answer(f"refused {reason}")

    # Farewell

    def _farewell(self, request: HookRequest) -> None:
        """Wait until the container's last records are written. That there is nothing to wait for is the usual case."""
        directory = places.workloads_dir(self.runtime)
        known = request.short_id if request.group is None else None
        for name in [known] if known else workloads.names(directory):
            try:
                if known is None:
                    status = workloads.ask(directory, name, {"do": "status"})
                    if status.get("container_id") != request.container_id:
                        continue
                workloads.ask_and_wait(directory, name, {"do": "leave"})
            except OSError:
                continue
        if request.group is not None:
            denial.wait_for_the_builds_end(f"{self.runtime}/groups/{request.group}")

    # Graft

    def _graft(self, request: HookRequest, hook_pid: int) -> None:
        if request.pid <= 1:
            raise GraftError(
                f"the state's pid is {request.pid}", hint="this hook is for the createRuntime stage, on the host"
            )
        bundle = read_bundle(request.bundle, workload.root_of(hook_pid))
        try:
            first = workload.open_workload(request.pid)
        except PermissionError as error:
            if not bundle.hands_over:
                raise GraftError(
                    f"the container's process {request.pid} may not be looked into: {error.strerror}",
                    hint=f"called by an ordinary user without an engine, it needs our hook at {handover.STAGE} too",
                ) from None
            first = self._handed_over(request)
        except OSError as error:
            raise GraftError(f"the container's process {request.pid}: {error.strerror}") from None
        if first.inode == workload.own_network():
            raise GraftError(
                "the container has the host's network, nothing to graft", hint="start it with --network=none"
            )
        member = Member(
            request.container_id,
            name_in(request.state_annotations) or workload.name_by_monitor(hook_pid),
            proc.pid_namespace(request.pid),
        )
        options = request.options()
        if request.group is not None and denial.noted(f"{self.runtime}/groups/{request.group}"):
            raise GraftError("another RUN of this build was denied something, and that is the build's end")
        wiring = None
        while wiring is None:
            try:
                if self._joined(request, member, first, _policy_text(request, options)):
                    self._answer("ready")
                    return
                wiring = self._wired(request, first, bundle, options)
            except _Taken as taken:
                if time.monotonic() - self.began > _CONTEST_SECONDS:
                    raise GraftError(
                        str(taken), hint="a graft needs a network of its own: --network=none"
                    ) from None
                time.sleep(_PAUSE)
        settings, cable = wiring
        settings.container_id, settings.container_name = member.container_id, member.name
        syscalls.set_not_dumpable()
        name, self.status = self._status(request, bundle)
        life = ContainerLife(name, first, member, lambda text: tell(f"{self.who}: {text}"))
        if request.ends_on_deny:
            denial.end_with_the_first(settings, partial(self._end, request, name, life))
        os.close(first.ns_fd)
        signal.alarm(0)
        tell(
            f"{self.who}: ready after {(time.monotonic() - self.began) * 1000:.0f} ms: {name}, "
            f"{settings.policy_text}, {settings.upstream_text}, dns {settings.dns}"
        )
        self._answer("ready")
        self._close_spare()
        serve(ByPackets(cable), settings, life, lambda _name: self.status)

    def _handed_over(self, request: HookRequest) -> Workload:
        """Let the first hook go, and be asked by the second one from then on."""
        request.options()  # nonsense is told now
        try:
            with Handover(self.runtime, request.container_id, request.pid) as waiting:
                self._answer("ready")
                self.hook_sock, first = waiting.receive()
                return first
        except OSError as error:
            raise GraftError(f"the container's network cannot be handed over: {error.strerror}") from None

    def _end(self, request: HookRequest, name: str, life: ContainerLife) -> None:
        """With its first denied flow."""
        at_work = life.end_everyone()
        tell(f"{self.who}: ended with its first denied flow")
        if request.group is not None:
            try:
                denial.note(f"{self.runtime}/groups/{request.group}", name, late=not at_work)
            except OSError as error:
                tell(f"{self.who}: its denial cannot be noted: {error.strerror}")

    def _joined(self, request: HookRequest, member: Member, first: Workload, policy: str) -> bool:
        """Is W grafted already, and may this container share that? GraftError when its options are others."""
        directory = places.workloads_dir(self.runtime)
        for status in workloads.statuses(directory):
            if status.get("network_namespace") != first.inode:
                continue
            if request.names_options and status.get("policy") != policy:
                raise GraftError(
                    f"its network is grafted already as {status.get('name')}, by another policy: {status.get('policy')}"
                )
            question = {
                "do": "join",
                "pid": request.pid,
                "container_id": member.container_id,
                "container_name": member.name,
            }
            try:
                answer = workloads.ask(directory, str(status["name"]), question)
            except OSError:
                return False
            if "joined" in answer:
                tell(f"{self.who}: joined {answer['joined']}")
                return True
        return False

    def _wired(
        self, request: HookRequest, first: Workload, bundle: Bundle, options: GraftOptions
    ) -> tuple[Settings, Wiring]:
        settings = settings_for("build" if request.group else "container", options)
        settings.policy_text = _policy_text(request, options)
        if settings.resolvers_by_proxy and request.nameservers:
            raise GraftError("nameserver and dns-server: questions go to one of them")
        if settings.dns == "forward" and not settings.resolvers_by_proxy:
            chosen = bundle.chosen_resolvers(_host_resolv_conf(), request.nameservers)
            settings.resolvers = chosen or settings.resolvers
        try:
            wiring = self._build(first.ns_fd, options, settings, bundle)
        except BuildError as error:
            settings.upstreams.close()
            if settings.journal is not None:
                settings.journal.close()
            if "eth0" in str(error) or os.strerror(errno.EEXIST) in str(error):
                raise _Taken(str(error)) from None
            raise GraftError(f"cannot wire the container's network: {error}") from None
        return settings, wiring

    def _build(self, ns_fd: int, options: GraftOptions, settings: Settings, bundle: Bundle) -> Wiring:
        """With the spare if that will do. BuildError; ConfigError for a proxy whose name has no address."""
        hold, dns = not options.accept_first, settings.dns != "off"
        loopback = bundle.loopback_resolvers() if dns else []

        def meanwhile() -> None:
            if options.proxies:
                asyncio.run(settings.upstreams.check())

        if self.spare is not None and (self.spare.hold, self.spare.dns) == (hold, dns):
            try:
                return self.spare.connect(ns_fd, loopback, meanwhile)
            except BuildError:
                self._close_spare()
                raise
        self._close_spare()
        workload.enter_owner_of(ns_fd)
        return build_in_child(
            hold=hold, dns=dns, loopback_resolvers=loopback, meanwhile=meanwhile, workload_ns_fd=ns_fd
        )

    def _close_spare(self) -> None:
        """Its builder's end takes some milliseconds: after the answer, when it was of use."""
        if self.spare is not None:
            self.spare.close()
            self.spare = None

    def _status(self, request: HookRequest, bundle: Bundle) -> tuple[str, StatusSocket]:
        """The workload's name and its socket. A former life of the same container is given time to end."""
        directory = places.workloads_dir(self.runtime)
        name = request.short_id if request.group is None else _step(self.runtime, request, bundle)
        deadline = time.monotonic() + _CONTEST_SECONDS
        while True:
            try:
                return name, StatusSocket.open(f"{directory}/{name}.sock")
            except FileExistsError:
                if time.monotonic() > deadline:
                    raise GraftError(f"a workload called {name} is there already") from None
            try:
                workloads.ask_and_wait(directory, name, {"do": "leave"})
            except OSError:
                pass
            time.sleep(_PAUSE)


def _policy_text(request: HookRequest, options: GraftOptions) -> str:
    return options.policy_text() + ("; ends with the first denial" if request.ends_on_deny else "")


def _step(runtime: str, request: HookRequest, bundle: Bundle) -> str:
    """The name of a build's next step, "GROUP-stepN". What it runs goes into the group's own list, for the summary:
    ``RUNTIME/groups/GROUP``, one JSON object a line.
    """
    path = f"{places.private_directory(f'{runtime}/groups')}/{request.group}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(fd, "r+b") as file:
        fcntl.flock(fd, fcntl.LOCK_EX)
        name = f"{request.group}-step{sum(1 for _ in file) + 1}"
        step = {"name": name, "container_id": request.container_id, "args": bundle.args, "started": time.time()}
        file.write(json.dumps(step).encode() + b"\n")
    return name


def keep_log_short() -> None:
    """Of a log file that has grown too long, the last quarter stays. Whoever holds it open appends, so nobody minds."""
    try:
        size = os.fstat(2).st_size
        is_ours = fcntl.fcntl(2, fcntl.F_GETFL) & (os.O_APPEND | os.O_ACCMODE) == os.O_APPEND | os.O_RDWR
        if size <= LOG_LIMIT or not is_ours:
            return
        tail = os.pread(2, LOG_LIMIT // 4, size - LOG_LIMIT // 4)
        os.ftruncate(2, 0)
        os.write(2, tail[tail.find(b"\n") + 1 :])
    except OSError:
        pass  # a terminal, a pipe, a full disk


def tell(text: str) -> None:
    """One line in the log, which is our stderr. A full disk takes nothing with it."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        os.write(2, f"{moment} {''.join(c if c.isprintable() else '?' for c in text)}\n".encode(errors="replace"))
    except OSError:
        pass


def _host_resolv_conf() -> str:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
