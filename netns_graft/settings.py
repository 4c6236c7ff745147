"""From graft options to what a forwarder works by. Raises ``ConfigError``; opens the flow journal."""

from __future__ import annotations

from typing import Literal

from netns_graft.dialling import Credentials, Upstreams, parse_upstreams
from netns_graft.dialling.place import canonical_host
from netns_graft.dns.resolv_conf import DNS_PORT, Nameserver, ResolvConf
from netns_graft.errors import ConfigError, UsageError
from netns_graft.forwarder.serve import Settings
from netns_graft.journal import Journal
from netns_graft.options import GraftOptions
from netns_graft.policy.address_lists import AddressList, ProxyLists, parse_address_list

DnsMode = Literal["synthetic", "forward", "off"]

_DNS_BY_TCP = 10.0  # seconds for connection, handshakes with proxies and answer


def settings_for(kind: str, options: GraftOptions) -> Settings:
    """``kind``: "exec", "container" or "build"."""
    lists = _lists(options)
    server = _dns_server(options.dns_server)
    upstreams = _upstreams(options)
    if lists and upstreams.is_direct and options.select_proxy_mode is None:
        raise UsageError(f"{_by_address(options)}: there is no proxy to go by", hint="give a --proxy")
    mode = _dns_mode(options, upstreams)
    settings = Settings(
        kind=kind,
        policy=options.policy,
        upstreams=upstreams,
        dns=mode,
        journal=Journal(options.flows) if options.flows is not None else None,
        policy_text=options.policy_text(),
        upstream_text=_upstream_text(options, upstreams),
        attribution=options.attribution,
        lists=lists,
        shares_host=options.mode == "ptrace" and not options.ignore_local,
    )
    if server is not None:
        settings.resolvers, settings.resolvers_by_proxy = ResolvConf((server,), timeout=_DNS_BY_TCP), True
    return settings


def _upstreams(options: GraftOptions) -> Upstreams:
    credentials = Credentials.from_environment(options.environ)
    if options.proxy_credentials is not None:
        credentials = credentials.or_else(Credentials.from_file(options.proxy_credentials))
    return parse_upstreams(options.proxies, credentials, select_mode=options.select_proxy_mode)


def _upstream_text(options: GraftOptions, upstreams: Upstreams) -> str:
    words = [" | ".join(upstreams.labels)]
    if options.select_proxy_mode == "random":
        words.append("at random")
    if options.direct_file is not None:
        words.append(f"direct for {options.direct_file}")
    if options.proxy_file is not None:
        words.append(f"only for {options.proxy_file}, else direct")
    return "; ".join(words)


def _lists(options: GraftOptions) -> ProxyLists:
    return ProxyLists(_list(options.direct_file, "--direct-file"), _list(options.proxy_file, "--proxy-file"))


def _list(path: str | None, option: str) -> AddressList | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}", where=option) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path!r} is no text", where=option) from None
    return parse_address_list(text, path)


def _dns_server(text: str | None) -> Nameserver | None:
    """``HOST``, ``HOST:PORT``, ``[v6]:PORT`` or a bare IPv6 address."""
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")) or text.endswith("]"):
        host, port = text, str(DNS_PORT)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    try:
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError
        return Nameserver(canonical_host(host), int(port))
    except ValueError:
        hint = "as in 1.1.1.1, 9.9.9.9:53 or [2620:fe::fe]:53"
        raise UsageError(f"--dns-server: {text!r} is no HOST[:PORT]", hint=hint) from None


def _by_address(options: GraftOptions) -> str | None:
    """The option that works with addresses, which names of addresses of their own would hide."""
    if options.direct_file is not None:
        return "--direct-file"
    return "--proxy-file" if options.proxy_file is not None else None


def _dns_mode(options: GraftOptions, upstreams: Upstreams) -> DnsMode:
    """As told, else synthetic when names matter: a rule names a host, or the proxy wants names."""
    names_matter = options.policy.names_hosts
    real = _by_address(options) or ("--dns-server" if options.dns_server is not None else None)
    if real is not None and (names_matter or options.dns == "synthetic"):
        why = "rules that name a host" if options.dns != "synthetic" else "--dns synthetic"
        raise UsageError(
            f"{real} goes by real addresses, and {why} by names: not for one and the same workload",
            hint=f"write the rules with addresses, or leave {real} out" if names_matter else "use --dns forward",
        )
    if options.dns_server is not None and options.dns == "off":
        raise UsageError("--dns-server: with --dns off nobody is asked", hint="leave one of them out")
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
    return "synthetic" if names_matter or (upstreams.takes_names and real is None) else "forward"
