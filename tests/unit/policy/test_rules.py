"""The policy as the contract tells it: first match wins, safe by default, names and addresses."""

import ipaddress

import pytest

from netns_graft.errors import ConfigError
from netns_graft.policy import NEEDS_ADDRESS, Decision, Request, parse_quick_rules


def policy(*options, default="allow"):
    """``policy("--allow x.org", "--deny :25")``"""
    pairs = [option.removeprefix("--").split(" ", 1) for option in options]
    return parse_quick_rules([(action, pattern) for action, pattern in pairs], default)


def to(destination, host=None, own=False):
    """``to("192.0.2.1 443")``: a request for an address; ``host`` when its name is known too."""
    address, port = destination.split(" ")
    return Request(host, ipaddress.ip_address(address).packed, int(port), host_owned=own)


def named(host, port=443):
    return Request(host, None, port)


def deny(rule):
    return Decision(False, rule)


def allow(rule):
    return Decision(True, rule)


class TestOrder:
    def test_no_rule_matches(self):
        assert policy().decide(to("192.0.2.1 443")) == allow("default")
        assert policy(default="deny").decide(to("192.0.2.1 443")) == deny("default")
        assert policy(default="deny").decide(named("example.org")) == deny("default")

    def test_first_match_wins(self):
        rules = policy("--allow 192.0.2.0/24:443", "--deny 192.0.2.0/24", "--allow 192.0.2.1", default="deny")
        assert rules.decide(to("192.0.2.1 443")) == allow("--allow 192.0.2.0/24:443")
        assert rules.decide(to("192.0.2.1 80")) == deny("--deny 192.0.2.0/24")
        assert rules.decide(to("198.51.100.1 443")) == deny("default")

    def test_the_rule_is_told_as_the_user_wrote_it(self):
        rules = policy("--deny *.Example.ORG.:443")
        assert rules.decide(to("192.0.2.1 443", "www.example.org")) == deny("--deny *.Example.ORG.:443")

    def test_ports_and_ranges(self):
        rules = policy("--deny :25", "--deny :8000-8100")
        verdicts = {p: rules.decide(to(f"192.0.2.1 {p}")).allow for p in (24, 25, 26, 7999, 8000, 8100, 8101)}
        assert [port for port, allowed in verdicts.items() if not allowed] == [25, 8000, 8100]

    def test_both_families(self):
        rules = policy("--allow 2001:db8::/32", "--allow [2001:db9::1]:443", default="deny")
        assert rules.decide(to("2001:db8:ffff::1 80")).allow
        assert rules.decide(to("2001:db9::1 443")).allow
        assert not rules.decide(to("2001:db9::1 80")).allow
        assert not rules.decide(to("192.0.2.1 443")).allow

    def test_all_of_ipv6_is_not_ipv4(self):
        rules = policy("--allow ::/0", default="deny")
        assert rules.decide(to("2001:db8::1 80")) == allow("--allow ::/0")
        assert rules.decide(to("::ffff:192.0.2.1 80")) == deny("default")

    def test_a_mapped_address_is_judged_as_ipv4(self):
        rules = policy("--deny 192.0.2.0/24")
        assert rules.decide(to("::ffff:192.0.2.1 80")) == deny("--deny 192.0.2.0/24")


class TestNames:
    def test_a_star_is_what_lies_under_the_name(self):
        rules = policy("--deny *.x.org")
        for host, allowed in {
            "www.x.org": False,
            "a.b.x.org": False,
            "WWW.X.org.": False,
            "x.org": True,
            "notx.org": True,
            "x.org.evil.example": True,
        }.items():
            assert rules.decide(to("192.0.2.1 443", host)).allow is allowed, host

    def test_a_bare_address_is_judged_by_networks_and_ports_only(self):
        rules = policy("--allow x.org", "--allow *.x.org", default="deny")
        assert rules.decide(to("192.0.2.1 443")) == deny("default")
        assert rules.decide(to("192.0.2.1 443", "x.org")) == allow("--allow x.org")

    def test_an_address_given_as_a_name_is_a_bare_address(self):
        rules = policy("--deny 192.0.2.1")
        assert rules.decide(to("192.0.2.1 443", "192.0.2.1")) == deny("--deny 192.0.2.1")

    def test_names_and_networks_both_apply_once_the_address_is_known(self):
        rules = policy("--deny 192.0.2.0/24", "--allow x.org", default="deny")
        assert rules.decide(named("x.org")) is NEEDS_ADDRESS
        assert rules.decide(to("192.0.2.1 443", "x.org")) == deny("--deny 192.0.2.0/24")
        assert rules.decide(to("203.0.113.1 443", "x.org")) == allow("--allow x.org")

    def test_a_name_that_no_address_could_help_is_denied_at_once(self):
        rules = policy("--deny 10.0.0.0/8", "--deny *.x.org", "--allow y.org:443", default="allow")
        assert rules.decide(named("www.x.org")) == deny("--deny *.x.org")
        strict = policy("--allow y.org:443", default="deny")
        assert strict.decide(named("y.org", 80)) == deny("default")
        assert strict.decide(named("z.org", 443)) == deny("default")

    def test_a_name_that_would_be_allowed_still_needs_its_address(self):
        assert policy().decide(named("x.org")) is NEEDS_ADDRESS
        assert policy("--allow x.org", default="deny").decide(named("x.org")) is NEEDS_ADDRESS
        assert policy("--allow 192.0.2.0/24", default="deny").decide(named("x.org")) is NEEDS_ADDRESS

    def test_what_a_resolver_could_read_as_an_address_is_no_name(self):
        rules = policy("--allow :1-65535")
        for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "::1", "169.254.169.254.", "a b", ""):
            assert rules.decide(named(host)) == deny("protected:not-a-name"), host
            assert rules.decide_by_name(named(host)) == deny("protected:not-a-name"), host

    def test_neither_a_name_nor_an_address_is_a_mistake_of_the_caller(self):
        with pytest.raises(ValueError):
            policy().decide(Request(None, None, 443))
        with pytest.raises(ValueError):
            policy().decide_by_name(to("192.0.2.1 443"))

    def test_names_hosts(self):
        assert not policy("--allow 10.0.0.0/8", "--deny :25").names_hosts
        assert policy("--deny *.x.org").names_hosts
        assert policy("--allow host.containers.internal:80").names_hosts


PROTECTED = [
    ("127.0.0.1", "loopback", "127.0.0.0/8"),
    ("127.1.2.3", "loopback", "127.1.2.3"),
    ("::1", "loopback", "::1"),
    ("64:ff9b::127.0.0.1", "loopback", "64:ff9b::7f00:0/104"),
    ("2002:7f00:1::1", "loopback", "2002:7f00::/24"),
    ("169.254.169.254", "link-local", "169.254.169.254"),
    ("169.254.169.254", "link-local", "169.254.0.0/16"),
    ("64:ff9b::169.254.169.254", "link-local", "64:ff9b::a9fe:a9fe"),
    ("fe80::1", "link-local", "fe80::/10"),
    ("fd00:ec2::254", "metadata", "fd00:ec2::254"),
    ("224.0.0.251", "multicast", "224.0.0.0/4"),
    ("ff02::fb", "multicast", "ff02::/16"),
    ("255.255.255.255", "broadcast", "255.255.255.255"),
    ("0.0.0.0", "unspecified", "0.0.0.0/8"),
    ("::", "unspecified", "::"),
    ("198.18.0.5", "synthetic", "198.18.0.0/15"),
    ("fd6e:6574:6772::5", "synthetic", "fd6e:6574:6772::/48"),
]


class TestSafeByDefault:
    @pytest.mark.parametrize(("address", "kind", "_naming"), PROTECTED)
    def test_denied_under_default_allow(self, address, kind, _naming):
        assert policy().decide(to(f"{address} 80")) == deny(f"protected:{kind}")

    @pytest.mark.parametrize(("address", "kind", "_naming"), PROTECTED)
    def test_wide_networks_ports_and_host_names_do_not_open_it(self, address, kind, _naming):
        rules = policy(
            "--allow 0.0.0.0/0", "--allow ::/0", "--allow 0.0.0.0/1", "--allow 2000::/3", "--allow :80"
        )
        assert rules.decide(to(f"{address} 80")) == deny(f"protected:{kind}")
        if kind != "synthetic":
            rebound = policy(
                "--allow evil.example", "--allow *.evil.example", "--allow *.containers.internal"
            )
            assert rebound.decide(to(f"{address} 80", "evil.example")) == deny(f"protected:{kind}")
            assert rebound.decide(to(f"{address} 80", "x.containers.internal")) == deny(f"protected:{kind}")

    @pytest.mark.parametrize(("address", "kind", "naming"), PROTECTED)
    def test_a_rule_that_names_it_opens_it(self, address, kind, naming):
        rule = f"--allow [{naming}]:80" if ":" in naming else f"--allow {naming}:80"
        wide = "--allow :1-65535"  # matches first, opens nothing, and does not hide the rule that does
        rules = policy(wide, rule, default="deny")
        assert rules.decide(to(f"{address} 80")) == allow(rule)
        assert rules.decide(to(f"{address} 81")) == deny(f"protected:{kind}")

    def test_a_deny_rule_comes_first_when_it_stands_first(self):
        rules = policy("--deny 127.0.0.0/8:22", "--allow 127.0.0.1")
        assert rules.decide(to("127.0.0.1 22")) == deny("--deny 127.0.0.0/8:22")
        assert rules.decide(to("127.0.0.1 23")) == allow("--allow 127.0.0.1")

    def test_denying_an_ipv4_network_denies_its_disguises(self):
        rules = policy("--allow 64:ff9b::a00:1", "--deny 10.0.0.0/8")
        assert rules.decide(to("64:ff9b::10.0.0.1 80")) == allow("--allow 64:ff9b::a00:1")
        assert rules.decide(to("64:ff9b::10.0.0.2 80")) == deny("--deny 10.0.0.0/8")
        assert rules.decide(to("2002:a00:2::1 80")) == deny("--deny 10.0.0.0/8")
        assert rules.decide(to("64:ff9b::11.0.0.2 80")) == allow("default")

    def test_allowing_an_ipv4_network_does_not_allow_its_disguises(self):
        rules = policy("--allow 10.0.0.0/8", default="deny")
        assert rules.decide(to("64:ff9b::10.0.0.1 80")) == deny("default")

    def test_synthetic_addresses_are_only_closed_without_their_name(self):
        assert policy().decide(to("198.18.0.5 80", "x.org")) == allow("default")


class TestTheHostsOwnAddresses:
    def test_denied_under_default_allow(self):
        assert policy().decide(to("192.0.2.9 80", own=True)) == deny("protected:host")
        assert policy().decide(to("2001:db8::9 80", own=True)) == deny("protected:host")

    def test_only_exactly_that_address_opens_it(self):
        request = to("192.0.2.9 80", own=True)
        assert policy("--allow 192.0.2.0/24", "--allow 192.0.2.8/31").decide(request) == deny(
            "protected:host"
        )
        assert policy("--allow 192.0.2.9:80").decide(request) == allow("--allow 192.0.2.9:80")
        assert policy("--allow 192.0.2.9:81").decide(request) == deny("protected:host")

    def test_a_name_that_leads_to_it_does_not_open_it(self):
        rules = policy("--allow my-laptop.example")
        assert rules.decide(to("192.0.2.9 80", "my-laptop.example", own=True)) == deny("protected:host")

    def test_its_link_local_address_is_protected_twice(self):
        request = to("fe80::9 80", own=True)
        assert policy("--allow fe80::/10").decide(request) == deny("protected:link-local")
        assert policy("--allow fe80::9").decide(request) == allow("--allow fe80::9")

    def test_the_loopback_range_is_enough_for_the_loopback(self):
        assert policy("--allow 127.0.0.0/8").decide(to("127.0.0.1 80", own=True)) == allow(
            "--allow 127.0.0.0/8"
        )


HOST = "host.containers.internal"


class TestHostContainersInternal:
    def test_denied_unless_a_rule_names_it(self):
        for rules in (
            policy(),
            policy("--allow *.containers.internal", "--allow :1-65535", "--allow 0.0.0.0/0"),
        ):
            assert rules.decide_by_name(named(HOST)) == deny("protected:host")
            for address in ("127.0.0.1", "::1", "192.0.2.9", "169.254.1.2"):
                assert rules.decide(to(f"{address} 443", HOST)) == deny("protected:host")
        assert policy().decide(named(HOST)) == deny("protected:host")

    def test_allowed_when_a_rule_names_it(self):
        rule = f"--allow {HOST}:5432"
        rules = policy(rule, default="deny")
        assert rules.decide(named("Host.Containers.Internal.", 5432)) == allow(rule)
        assert rules.decide_by_name(named(HOST, 5432)) == allow(rule)
        assert rules.decide(named(HOST, 5433)) == deny("protected:host")
        for address in ("127.0.0.1", "::1", "192.0.2.9"):
            assert rules.decide(to(f"{address} 5432", HOST)) == allow(rule)
        assert rules.decide(to("192.0.2.9 5432", HOST, own=True)) == allow(rule)
        assert rules.decide(to("169.254.1.2 5432", HOST, own=True)) == allow(rule)

    def test_it_means_the_host_and_not_the_clouds_metadata(self):
        rules = policy(f"--allow {HOST}")
        assert rules.decide(to("169.254.169.254 80", HOST)) == deny("protected:host")

    def test_the_rule_does_not_open_the_loopback_to_other_names(self):
        rules = policy(f"--allow {HOST}")
        assert rules.decide(to("127.0.0.1 80")) == deny("protected:loopback")
        assert rules.decide(to("127.0.0.1 80", "x.org")) == deny("protected:loopback")

    def test_a_rule_for_its_address_names_it_too(self):
        rules = policy("--allow 127.0.0.1", default="deny")
        assert rules.decide(named(HOST)) is NEEDS_ADDRESS
        assert rules.decide(to("127.0.0.1 443", HOST)) == allow("--allow 127.0.0.1")
        assert rules.decide(to("192.0.2.9 443", HOST)) == deny("protected:host")

    @pytest.mark.parametrize("network", ["10.0.0.0/8", "0.0.0.0/0", "126.0.0.0/7", "::/0"])
    def test_a_network_that_is_not_the_loopback_does_not(self, network):
        rules = policy(f"--allow {network}")
        assert rules.decide(named(HOST)) == deny("protected:host")
        assert rules.decide(to("127.0.0.1 443", HOST)) == deny("protected:host")
        assert rules.decide(to("::1 443", HOST)) == deny("protected:host")

    def test_deny_rules_apply(self):
        assert policy(f"--deny {HOST}", f"--allow {HOST}").decide(named(HOST)) == deny(f"--deny {HOST}")
        rules = policy("--deny 127.0.0.1", f"--allow {HOST}")
        assert rules.decide(named(HOST)) is NEEDS_ADDRESS
        assert rules.decide(to("127.0.0.1 443", HOST)) == deny("--deny 127.0.0.1")


class TestAProxyTakesTheName:
    def test_networks_do_not_match_at_all(self):
        rules = policy("--deny 0.0.0.0/0", "--allow 10.0.0.0/8", "--allow x.org", default="deny")
        assert rules.decide_by_name(named("x.org")) == allow("--allow x.org")
        assert rules.decide_by_name(named("y.org")) == deny("default")

    def test_names_and_ports_match_in_order(self):
        rules = policy("--deny :25", "--deny ads.x.org", "--allow *.x.org", default="deny")
        assert rules.decide_by_name(named("www.x.org")) == allow("--allow *.x.org")
        assert rules.decide_by_name(named("www.x.org", 25)) == deny("--deny :25")
        assert rules.decide_by_name(named("ads.x.org")) == deny("--deny ads.x.org")

    def test_localhost_is_the_loopback_of_the_proxy(self):
        rules = policy("--allow :1-65535")
        assert rules.decide_by_name(named("localhost")) == deny("protected:loopback")
        assert rules.decide_by_name(named("a.localhost.")) == deny("protected:loopback")


class TestMayAsk:
    def test_default(self):
        assert policy().may_ask("x.org") == allow("default")
        assert policy(default="deny").may_ask("x.org") == deny("default")

    def test_only_names_that_a_rule_could_allow(self):
        rules = policy("--allow *.x.org:443", "--deny :25", default="deny")
        assert rules.may_ask("www.X.org.") == allow("--allow *.x.org:443")
        assert rules.may_ask("x.org") == deny("default")
        assert rules.may_ask("secret.tunnel.example") == deny("default")

    def test_a_network_or_a_port_could_allow_any_name(self):
        assert policy("--allow 10.0.0.0/8", default="deny").may_ask("x.org") == allow("--allow 10.0.0.0/8")
        assert policy("--allow :443", default="deny").may_ask("x.org") == allow("--allow :443")

    def test_a_name_denied_on_every_port_is_not_asked(self):
        rules = policy("--deny x.org", "--deny y.org:80", "--deny 10.0.0.0/8")
        assert rules.may_ask("x.org") == deny("--deny x.org")
        assert rules.may_ask("y.org") == allow("default")
        assert policy("--deny :1-65535", "--allow x.org").may_ask("x.org") == deny("--deny :1-65535")

    def test_the_host(self):
        assert policy("--allow 127.0.0.0/8").may_ask("host.containers.internal") == deny("protected:host")
        assert policy(f"--allow {HOST}:80").may_ask(HOST) == allow(f"--allow {HOST}:80")


class TestParsing:
    @pytest.mark.parametrize("action", ["allow", "deny"])
    def test_a_bad_pattern_names_its_option_and_the_cure(self, action):
        with pytest.raises(ConfigError) as caught:
            parse_quick_rules([("deny", "x.org"), (action, "10.0.0.1/8")], "allow")
        assert str(caught.value) == f"--{action}: '10.0.0.1/8' has bits set after its prefix"
        assert caught.value.where == f"--{action}"
        assert caught.value.status == 2
        assert "10.0.0.0/8" in caught.value.hint

    def test_a_default_is_allow_or_deny(self):
        with pytest.raises(ConfigError, match=r"--default: 'maybe' is neither allow nor deny"):
            parse_quick_rules([], "maybe")

    @pytest.mark.parametrize("pattern", ["localhost:5432", "*.localhost", "ip6-loopback"])
    def test_a_name_for_the_loopback_would_never_match(self, pattern):
        with pytest.raises(ConfigError, match="never match") as caught:
            policy(f"--allow {pattern}")
        assert "127.0.0.1" in caught.value.hint and HOST in caught.value.hint

    def test_denying_the_loopback_by_name_is_fine(self):
        rules = policy("--deny *.localhost")
        assert rules.decide_by_name(named("a.localhost")) == deny("--deny *.localhost")
