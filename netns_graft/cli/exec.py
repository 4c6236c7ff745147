"""``netns-graft exec``: from the options to the command's exit status."""

from __future__ import annotations

import os
import sys

from netns_graft.cli.summary import print_summary
from netns_graft.dialling.credentials import PASSWORD_VARIABLE, USERNAME_VARIABLE
from netns_graft.dns.resolv_conf import loopback_resolvers, resolv_conf_for_workload
from netns_graft.errors import GraftError
from netns_graft.graft.command import Login
from netns_graft.graft.forwarder_process import FORWARDER
from netns_graft.graft.supervisor import Plan, Tracing, run
from netns_graft.journal import Tally
from netns_graft.lines import say
from netns_graft.linux import host_files, places, proc
from netns_graft.options import GraftOptions
from netns_graft.settings import settings_for

_DENIED = 78  # EX_CONFIG: --fail-on-deny, and something was
_RESOLV_CONF = "/etc/resolv.conf"
_SECRETS = frozenset({USERNAME_VARIABLE, PASSWORD_VARIABLE})  # for us, not for the command


def run_exec(options: GraftOptions, command: list[str]) -> int:
    """Run ``command`` in a graft. Raises GraftError when the graft cannot be made or breaks."""
    _refuse_where_traced(options.mode)
    settings = settings_for("exec", options)
    mode = settings.dns
    host_text = _host_resolv_conf()
    login = _login(options.user)
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    plan = Plan(
        command=command,
        environment=environment if login is None else login.environment(environment),
        settings=settings,
        hold=not options.accept_first,
        resolv_conf=None if mode == "off" else resolv_conf_for_workload(host_text, mode),
        loopback_resolvers=[] if mode == "off" else loopback_resolvers(host_text),
        status_dir=_status_dir(),
        login=login,
        tracing=Tracing(options.ignore_local, options.strict) if options.mode == "ptrace" else None,
    )
    if plan.tracing is not None and not _inside_a_graft():
        passes = "" if options.strict else "io_uring, raw sockets and "
        say("warning", f"mode ptrace is not a sandbox: {passes}programs that work against their tracer get past it")
    ending = run(plan)
    tally = _tally(ending.tally)
    if options.summary or (options.summary is None and sys.stderr.isatty()):
        print_summary(tally, sys.stderr)
    if options.fail_on_deny and tally.denied and ending.status == 0:
        return _DENIED
    return ending.status


def _refuse_where_traced(mode: str) -> None:
    """A process has one tracer, and the one of mode ptrace sees only what it may see: not our forwarder's secrets."""
    if proc.name(proc.tracer(os.getpid())) == FORWARDER and (mode == "ptrace" or os.geteuid() != 0):
        raise GraftError(
            "a graft in mode ptrace is around us, and there can be no other in it",
            hint="have the outer one in mode route; then both modes work inside",
        )


def _inside_a_graft() -> bool:
    """There, what gets past a tracer still meets the only route."""
    try:
        return host_files.in_graft("/")
    except OSError:
        return False


def _login(user: str | None) -> Login | None:
    if user is None:
        return None
    if os.geteuid() != 0:
        raise GraftError(f"--user {user}: only root can run a command as somebody else", hint="sudo netns-graft exec …")
    return Login.of(user)


def _tally(text: str | None) -> Tally:
    if text is not None:
        try:
            return Tally.from_json(text)
        except ValueError:
            pass
    raise GraftError("the forwarder ended without its account of the flows")


def _status_dir() -> str | None:
    """A graft that cannot be asked how it fares is a graft all the same."""
    try:
        return places.workloads_dir(places.runtime_dir())
    except OSError:
        return None


def _host_resolv_conf() -> str:
    try:
        with open(_RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # libc then asks 127.0.0.1, and so shall a grafted program
