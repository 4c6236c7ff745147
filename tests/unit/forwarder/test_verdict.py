"""The judge: which way a flow that is allowed leaves, and what of the host's own addresses."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import pytest

from netns_graft.dialling import parse_upstreams
from netns_graft.flow import Flow
from netns_graft.forwarder.verdict import Judge, packed
from netns_graft.policy import parse_quick_rules
from netns_graft.policy.address_lists import ProxyLists, parse_address_list

PROXY = "socks5://127.0.0.1:1080"


@contextmanager
def judge(*rules: tuple[str, str], name: tuple[str, str] | None = None, **more):
    upstreams = parse_upstreams([PROXY])
    made = Judge(parse_quick_rules(rules, "allow"), upstreams, lambda _address: name, **more)
    try:
        yield made
    finally:
        made.close()
        upstreams.close()


def flow_to(address: str) -> Flow:
    return Flow("1", "exec-1", "tcp", "198.18.0.1", 40000, address, 443, started=0.0)


def ruled(made: Judge, address: str):
    flow = flow_to(address)
    return made.rule(flow, packed(address)), flow


class TestLists:
    LISTS = ProxyLists(parse_address_list("192.0.2.0/24\n2001:db8::/32", "d"), None)

    @pytest.mark.parametrize(
        ("address", "literal"),
        [("192.0.2.7", True), ("2001:db8::7", True), ("198.51.100.7", False), ("2001:db9::7", False)],
    )
    def test_what_is_listed_goes_directly(self, address, literal):
        with judge(lists=self.LISTS) as made:
            ruling, flow = ruled(made, address)
            assert (ruling.literal, flow.verdict) == (literal, "allow")
            assert ruling.upstreams.labels == (["direct"] if literal else [PROXY])

    def test_a_list_allows_nothing(self):
        with judge(("deny", "192.0.2.7"), lists=self.LISTS) as made:
            ruling, flow = ruled(made, "192.0.2.7")
            assert (ruling, flow.verdict, flow.rule) == (None, "deny", "--deny 192.0.2.7")

    def test_a_name_that_is_only_known_changes_nothing(self):
        with judge(lists=self.LISTS, name=("example.org", "dns")) as made:
            assert ruled(made, "192.0.2.7")[0].literal


class TestTheHostsOwn:
    """127.0.0.1, ::1 and what an address of every host is made of; 0.0.0.0 is the loopback to Linux."""

    LOCAL = ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::")

    @pytest.mark.parametrize("address", LOCAL)
    def test_closed_in_a_network_of_ones_own(self, address):
        with judge() as made:
            ruling, flow = ruled(made, address)
            assert ruling is None and flow.rule.startswith("protected:")

    @pytest.mark.parametrize("address", LOCAL)
    def test_like_any_other_where_the_network_is_shared(self, address):
        with judge(shares_host=True) as made:
            ruling, flow = ruled(made, address)
            assert (flow.verdict, flow.rule, ruling.upstreams.labels) == ("allow", "default", [PROXY])
        with judge(("deny", address), shares_host=True) as made:
            assert ruled(made, address)[0] is None

    @pytest.mark.parametrize(
        ("address", "kind"),
        [
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("fd00:ec2::254", "metadata"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("0.1.2.3", "unspecified"),
            ("198.18.0.9", "synthetic"),
        ],
    )
    def test_what_is_no_hosts_own_stays_closed_there_too(self, address, kind):
        with judge(shares_host=True) as made:
            ruling, flow = ruled(made, address)
            assert (ruling, flow.rule) == (None, f"protected:{kind}")

    def test_an_address_of_an_interface(self):
        """Whatever this machine has besides the loopback; one alone has none."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # no packet: the kernel picks an address of ours
            except OSError:
                own = "127.0.0.2"
            else:
                own = probe.getsockname()[0]
        with judge() as made:
            assert ruled(made, own)[0] is None
        with judge(shares_host=True) as made:
            assert ruled(made, own)[0] is not None

    @pytest.mark.parametrize("shares", [False, True])
    def test_the_hosts_own_name_stays_closed_until_named(self, shares):
        name = ("host.containers.internal", "synthetic")
        with judge(shares_host=shares, name=name) as made:
            ruling, flow = ruled(made, "198.18.0.9")
            assert ruling is None and flow.rule == "protected:host"
        with judge(("allow", "host.containers.internal"), shares_host=shares, name=name) as made:
            ruling, _ = ruled(made, "198.18.0.9")
            assert ruling.upstreams.is_direct and ruling.permits("127.0.0.1")
