"""The policy against a slow one written with ``ipaddress``, straight from the contract's sentences."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from netns_graft.policy import NEEDS_ADDRESS, Decision, Request, parse_quick_rules

RANGES = {
    "loopback": ["127.0.0.0/8", "::1/128"],
    "link-local": ["169.254.0.0/16", "fe80::/10"],
    "multicast": ["224.0.0.0/4", "ff00::/8"],
    "broadcast": ["255.255.255.255/32"],
    "unspecified": ["0.0.0.0/8", "::/128"],
    "metadata": ["fd00:ec2::254/128", "fd20:ce::254/128"],
    "synthetic": ["198.18.0.0/15", "fd6e:6574:6772::/48"],
}


def split_pattern(pattern):
    """(host, network, first port, last port) of the patterns that the strategies below make."""
    where, ports = pattern, None
    if pattern.startswith("["):
        where, _, ports = pattern[1:].partition("]")
        ports = ports.removeprefix(":") or None
    elif pattern.count(":") <= 1:
        where, _, ports = pattern.partition(":")
        ports = ports or None
    first, _, last = (ports or "0-65535").partition("-")
    try:
        network = ipaddress.ip_network(where)
    except ValueError:
        network = None
    return (None if network else where.lower()), network, int(first), int(last or first)


def protected_range(address):
    for kind, texts in RANGES.items():
        for text in texts:
            network = ipaddress.ip_network(text)
            if network.version == address.version and address in network:
                return kind, network
    return None


def reference(rules, default, host, address, port, own, shared=False):
    found = protected_range(address)
    if shared:
        own = False
        if found and (found[0] == "loopback" or int(address) == 0):
            found = None
    if found and found[0] == "synthetic" and host:
        found = None
    if found and found[0] == "loopback":
        own = False
    for action, pattern in rules:
        name, network, first, last = split_pattern(pattern)
        if not first <= port <= last:
            continue
        if network and (network.version != address.version or address not in network):
            continue
        if name and name.startswith("*."):
            if not (host and host.endswith(name[1:])):
                continue
        elif name and name != host:
            continue
        if action == "deny":
            return Decision(False, f"--deny {pattern}")
        if found and not (network and network.subnet_of(found[1])):
            continue
        if own and not (network and network.num_addresses == 1):
            continue
        return Decision(True, f"--allow {pattern}")
    if found:
        return Decision(False, f"protected:{found[0]}")
    return Decision(False, "protected:host") if own else Decision(default == "allow", "default")


edges = [edge for texts in RANGES.values() for text in texts for edge in (ipaddress.ip_network(text)[0],)]
edges += [ipaddress.ip_address(text) for text in ("126.255.255.255", "128.0.0.0", "10.0.0.1", "2001:db8::1")]
v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6).filter(
    lambda a: not (a.ipv4_mapped or a.sixtofour or int(a) >> 32 in (0, 0x64FF9B << 64)) or int(a) < 2
)
addresses = st.sampled_from(edges) | v4 | v6
hosts = st.sampled_from(["x.org", "www.x.org", "a.b.x.org", "y.example", "xx.org"])
ports = st.sampled_from([22, 25, 80, 443, 8000, 65535])
port_suffix = st.sampled_from(["", ":25", ":443", ":80-8000", ":1-65535"])


@st.composite
def patterns(draw):
    suffix = draw(port_suffix)
    form = draw(st.sampled_from(["host", "network", "port"]))
    if form == "host":
        return draw(st.sampled_from(["", "*."])) + draw(hosts) + suffix
    if form == "port":
        return suffix or ":443"
    address = draw(addresses)
    longest = address.max_prefixlen
    prefix = draw(
        st.sampled_from([0, 1, 4, 8, 10, 15, 16, 31, 32, 48, 64, 127, 128]).filter(lambda n: n <= longest)
    )
    network = ipaddress.ip_network((address, prefix), strict=False)
    # ::ffff:0:0/96 as a rule is IPv4, which the addresses here are not.
    return f"[{network}]{suffix}" if network.version == 6 else f"{network}{suffix}"


rule_lists = st.lists(st.tuples(st.sampled_from(["allow", "deny"]), patterns()), max_size=6)
defaults = st.sampled_from(["allow", "deny"])


@given(rule_lists, defaults, st.none() | hosts, addresses, ports, st.booleans(), st.booleans())
def test_every_decision_is_that_of_the_reference(rules, default, host, address, port, own, shared):
    request = Request(host, address.packed, port, host_owned=own, shares_host=shared)
    decision = parse_quick_rules(rules, default).decide(request)
    assert decision == reference(rules, default, host, address, port, own, shared)


@given(rule_lists, defaults, hosts, ports, st.lists(addresses, max_size=4))
def test_what_is_decided_without_an_address_holds_for_every_address(rules, default, host, port, found):
    policy = parse_quick_rules(rules, default)
    early = policy.decide(Request(host, None, port))
    if early is NEEDS_ADDRESS:
        return
    assert not early.allow
    for address in found:
        assert not policy.decide(Request(host, address.packed, port)).allow


@given(rule_lists, defaults, hosts, ports, addresses)
def test_a_name_that_may_not_be_asked_is_allowed_nowhere(rules, default, host, port, address):
    policy = parse_quick_rules(rules, default)
    if not policy.may_ask(host).allow:
        assert not policy.decide(Request(host, address.packed, port)).allow
        assert not policy.decide_by_name(Request(host, None, port)).allow


@given(rule_lists, defaults, st.none() | hosts, ports, v4, st.booleans())
def test_a_mapped_address_gets_the_verdict_of_its_ipv4(rules, default, host, port, address, own):
    policy = parse_quick_rules(rules, default)
    mapped = bytes(10) + b"\xff\xff" + address.packed
    assert policy.decide(Request(host, mapped, port, host_owned=own)) == policy.decide(
        Request(host, address.packed, port, host_owned=own)
    )
