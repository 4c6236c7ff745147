"""``netns-graft exec``: from the options to the command's exit status."""

from __future__ import annotations

import os
import sys
from typing import Literal

from netns_graft.cli.options import GraftOptions
from netns_graft.cli.summary import print_summary
from netns_graft.dialling import Credentials, Upstreams, parse_upstreams
from netns_graft.dialling.credentials import PASSWORD_VARIABLE, USERNAME_VARIABLE
from netns_graft.dns.resolv_conf import loopback_resolvers, resolv_conf_for_workload
from netns_graft.errors import GraftError, UsageError
from netns_graft.forwarder.serve import Settings
from netns_graft.graft.supervisor import Plan, run
from netns_graft.journal import Journal, Tally

_DENIED = 78  # EX_CONFIG: --fail-on-deny, and something was
_RESOLV_CONF = "/etc/resolv.conf"
_SECRETS = frozenset({USERNAME_VARIABLE, PASSWORD_VARIABLE})  # for us, not for the command

DnsMode = Literal["synthetic", "forward", "off"]


def run_exec(options: GraftOptions, command: list[str]) -> int:
    """Run ``command`` in a graft. Raises GraftError when the graft cannot be made or breaks."""
    upstreams = _upstreams(options)
    mode = _dns_mode(options, upstreams)
    host_text = _host_resolv_conf()
    journal = Journal(options.flows) if options.flows is not None else None
    settings = Settings(kind="exec", policy=options.policy, upstreams=upstreams, dns=mode, journal=journal)
    plan = Plan(
        command=command,
        environment={name: value for name, value in os.environ.items() if name not in _SECRETS},
        settings=settings,
        hold=not options.accept_first,
        resolv_conf=None if mode == "off" else resolv_conf_for_workload(host_text, mode),
        loopback_resolvers=[] if mode == "off" else loopback_resolvers(host_text),
    )
    ending = run(plan)
    tally = _tally(ending.tally)
    if options.summary or (options.summary is None and sys.stderr.isatty()):
        print_summary(tally, sys.stderr)
    if options.fail_on_deny and tally.denied and ending.status == 0:
        return _DENIED
    return ending.status


def _tally(text: str | None) -> Tally:
    if text is not None:
        try:
            return Tally.from_json(text)
        except ValueError:
            pass
    raise GraftError("the forwarder ended without its account of the flows")


def _upstreams(options: GraftOptions) -> Upstreams:
    credentials = Credentials.from_environment(options.environ)
    if options.proxy_credentials is not None:
        credentials = credentials.or_else(Credentials.from_file(options.proxy_credentials))
    return parse_upstreams(options.proxies, credentials)


def _dns_mode(options: GraftOptions, upstreams: Upstreams) -> DnsMode:
    """As told, else synthetic when names matter: a rule names a host, or the proxy wants names."""
    names_matter = options.policy.names_hosts
    if options.dns == "synthetic":
        return "synthetic"
    if options.dns is not None and names_matter:
        raise UsageError(
            f"--dns {options.dns} cannot carry rules that name a host: an address has many names",
            hint="leave --dns out, or write the rules with addresses",
        )
    if options.dns == "forward":
        return "forward"
    if options.dns == "off":
        return "off"
    return "synthetic" if names_matter or upstreams.takes_names else "forward"


def _host_resolv_conf() -> str:
    try:
        with open(_RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # libc then asks 127.0.0.1, and so shall a grafted program
