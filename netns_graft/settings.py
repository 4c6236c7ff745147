"""From graft options to what a forwarder works by. Raises ``ConfigError``; opens the flow journal."""

from __future__ import annotations

from typing import Literal

from netns_graft.dialling import Credentials, Upstreams, parse_upstreams
from netns_graft.errors import UsageError
from netns_graft.forwarder.serve import Settings
from netns_graft.journal import Journal
from netns_graft.options import GraftOptions

DnsMode = Literal["synthetic", "forward", "off"]


def settings_for(kind: str, options: GraftOptions) -> Settings:
    """``kind``: "exec", "container" or "build"."""
    upstreams = _upstreams(options)
    mode = _dns_mode(options, upstreams)
    return Settings(
        kind=kind,
        policy=options.policy,
        upstreams=upstreams,
        dns=mode,
        journal=Journal(options.flows) if options.flows is not None else None,
        policy_text=options.policy_text(),
        upstream_text=" | ".join(upstreams.labels),
        attribution=options.attribution,
    )


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
