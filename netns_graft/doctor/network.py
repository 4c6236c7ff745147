"""Sysctls and connection tracking of the network namespace in which we are, and what its NAT rules do to loopback."""

from __future__ import annotations

import errno
from collections.abc import Callable

from netns_graft.doctor import nat
from netns_graft.doctor.finding import Finding, Status, reason
from netns_graft.doctor.place import Place
from netns_graft.linux import host_files, nft_rules, xt_rules
from netns_graft.linux.nat_rules import Table

_NEARLY_FULL = 0.9
_NOT_PERMITTED = (errno.EPERM, errno.EACCES)


def nftables(root: str, place: Place) -> Finding:
    """nftables' own rules and those of iptables-nft, for both are kept in one place."""
    name, title = "nat-nftables", "NAT, nftables"
    if host_files.module_missing(root, "nf_tables"):
        return Finding(name, title, Status.OK, "no rules: nf_tables is not loaded")
    return _examined(name, title, root, place, nft_rules.read)


def iptables(root: str, place: Place, layout: xt_rules.Layout) -> Finding:
    """Legacy iptables, of one family."""
    version = "" if layout is xt_rules.IPV4 else "6"
    return _examined(
        f"nat-ip{version}tables", f"NAT, ip{version}tables-legacy", root, place, lambda: _one(xt_rules.read(layout))
    )


def _one(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _examined(name: str, title: str, root: str, place: Place, read: Callable[[], list[Table]]) -> Finding:
    try:
        tables = read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOPROTOOPT):
            return Finding(name, title, Status.OK, "no rules: this kernel does not have it, or not loaded")
        cure = "sudo netns-graft doctor" if error.errno in _NOT_PERMITTED and not place.own_user_namespace else None
        return Finding(name, title, Status.UNKNOWN, f"the rules cannot be read: {reason(error)}", cure)
    return judged(name, title, tables, host_files.own_addresses(root))


def judged(name: str, title: str, tables: list[Table], own: list[str]) -> Finding:
    """What these tables do to connections of this host with itself."""
    touched = nat.examine(tables, own)
    if touched.loopback:
        rule = touched.loopback[0]
        detail = "loopback is translated here: who looks a source address up in /proc/net/tcp finds nobody"
        if name == "nat-nftables":
            cure = (
                f'first in that chain: nft insert rule {rule.family} {rule.table} {rule.chain} oifname "lo" accept; '
                "or leave it: a graft has its own namespace, without these rules"
            )
        else:
            command = "iptables" if rule.family == "ip" else "ip6tables"
            cure = (
                f"first in that chain: {command}-legacy -t nat -I {rule.chain} -o lo -j ACCEPT; "
                "or leave it: a graft has its own namespace, without these rules"
            )
        return Finding(name, title, Status.WARNING, detail, cure, _lines(touched.loopback))
    if touched.too_many:
        return Finding(name, title, Status.UNKNOWN, "too many rules to follow them all")
    if touched.local:
        detail = "loopback is not touched; other connections of this host are translated"
        return Finding(name, title, Status.OK, detail, None, _lines(touched.local))
    return Finding(name, title, Status.OK, "no rule touches loopback or this host's own addresses")


def _lines(rules: list[nat.Touching]) -> tuple[str, ...]:
    return tuple(rule.line() for rule in rules)


def route_localnet(root: str) -> Finding:
    name, title = "route-localnet", "route_localnet"
    try:
        found = host_files.per_interface(root, "route_localnet")
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/sys/net/ipv4/conf: {reason(error)}")
    on = [interface for interface, value in found.items() if value]
    if not on:
        return Finding(name, title, Status.OK, "off on every interface")
    return Finding(
        name, title, Status.WARNING,
        f"on for {', '.join(on)}: 127.0.0.0/8 may be routed, so NAT can lead loopback off this host and back",
        " ".join(["sudo sysctl -w", *(f"net.ipv4.conf.{interface}.route_localnet=0" for interface in on)]),
    )  # fmt: skip


def rp_filter(root: str) -> Finding:
    """Told, never judged: a graft sets its own to 0."""
    name, title = "rp-filter", "rp_filter"
    try:
        found = host_files.per_interface(root, "rp_filter")
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/sys/net/ipv4/conf: {reason(error)}")
    general = found.pop("all", 0)
    words = {0: "off", 1: "strict", 2: "loose"}
    groups: dict[int, list[str]] = {}
    for interface, value in found.items():
        groups.setdefault(max(value, general), []).append(interface)  # the kernel takes the larger of the two
    detail = "; ".join(f"{words.get(value, value)} on {', '.join(names)}" for value, names in sorted(groups.items()))
    if len(groups) == 1:
        detail = f"{words.get(next(iter(groups)), next(iter(groups)))} on every interface"
    return Finding(name, title, Status.OK, (detail or "no interface") + "; a graft sets its own")


def nonlocal_bind(root: str) -> Finding:
    name, title = "nonlocal-bind", "ip_nonlocal_bind"
    on = []
    try:
        for family in ("ipv4", "ipv6"):
            if host_files.sysctl(root, f"net/{family}/ip_nonlocal_bind"):
                on.append(f"net.{family}.ip_nonlocal_bind")
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/sys/net: {reason(error)}")
    if not on:
        return Finding(name, title, Status.OK, "off")
    return Finding(
        name, title, Status.WARNING, "on: programs here may use source addresses that nobody has",
        " ".join(["sudo sysctl -w", *(f"{one}=0" for one in on)]),
    )  # fmt: skip


def conntrack(root: str) -> Finding:
    name, title = "conntrack", "conntrack"
    try:
        limit = host_files.sysctl(root, "net/netfilter/nf_conntrack_max")
        count = host_files.sysctl(root, "net/netfilter/nf_conntrack_count")
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/sys/net/netfilter: {reason(error)}")
    if limit is None:
        return Finding(name, title, Status.OK, "not loaded: nothing is translated here")
    if count is None:
        return Finding(name, title, Status.UNKNOWN, f"at most {limit} connections; how many there are is not told")
    if limit and count >= limit * _NEARLY_FULL:
        return Finding(
            name, title, Status.WARNING, f"{count} of {limit} connections: nearly full, new ones will be dropped",
            f"sudo sysctl -w net.netfilter.nf_conntrack_max={limit * 4}",
        )  # fmt: skip
    return Finding(name, title, Status.OK, f"{count} of {limit} connections")
