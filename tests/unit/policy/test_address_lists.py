"""Lists of addresses in graftcp's format, and which way each address goes by them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.errors import ConfigError
from netns_graft.policy.address_lists import ProxyLists, parse_address_list

GRAFTCPS_EXAMPLE = "111.111.123.222\n192.168.1.0/24\n10.1.1.0/24\n2402:31c0::/32\n"


def packed(text):
    return ipaddress.ip_address(text).packed


def listed(text):
    return parse_address_list(text, "ips.txt")


@pytest.mark.parametrize(
    ("address", "held"),
    [
        ("111.111.123.222", True),
        ("111.111.123.223", False),
        ("192.168.1.255", True),
        ("192.168.2.0", False),
        ("2402:31c0:1::1", True),
        ("2402:31c1::1", False),
        ("::ffff:10.1.1.7", True),
        ("::10.1.1.7", False),
    ],
)
def test_an_address_of_graftcps_own_example(address, held):
    assert (packed(address) in listed(GRAFTCPS_EXAMPLE)) == held


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("192.0.2.1", 1),
        ("192.0.2.1\r\n\r\n192.0.2.2  \t\r\n", 2),
        ("# mine\n192.0.2.1\n\n#\n", 1),
        ("10.1.2.3/8\n10.0.0.0/8\n", 1),
        ("0.0.0.0/0\n::/0\n", 2),
        ("::ffff:192.0.2.1\n192.0.2.1\n", 1),
    ],
)
def test_what_a_list_may_hold(text, count):
    assert len(listed(text)) == count


def test_bits_after_the_prefix_are_cut_off():
    assert packed("10.9.9.9") in listed("10.1.2.3/8")


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("192.0.2.1\nexample.org\n", "ips.txt:2", "'example.org' is neither"),
        (" 192.0.2.1", "ips.txt:1", "neither"),
        ("192.0.2.1 # mine", "ips.txt:1", "neither"),
        ("192.0.2.0/33", "ips.txt:1", "neither"),
        ("192.0.2.0/255.255.255.0", "ips.txt:1", "neither"),
        ("192.0.2.0/", "ips.txt:1", "neither"),
        ("192.0.2.0/-1", "ips.txt:1", "neither"),
        ("127.1", "ips.txt:1", "neither"),
        ("fe80::1%eth0", "ips.txt:1", "neither"),
        ("192.0.2.1:80", "ips.txt:1", "neither"),
        ("3221225985", "ips.txt:1", "neither"),
        ("x" * 500, "ips.txt:1", "x…' is neither"),
        ("", "ips.txt", "no addresses"),
        ("# nothing\n", "ips.txt", "no addresses"),
    ],
)
def test_a_list_that_is_none(text, where, said):
    with pytest.raises(ConfigError, match=said) as caught:
        listed(text)
    assert caught.value.where == where
    assert len(str(caught.value)) < 200


@given(st.text())
def test_any_text_is_a_list_or_our_error(text):
    try:
        assert len(listed(text)) > 0
    except ConfigError as error:
        assert error.where is not None and error.where.startswith("ips.txt")


networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
)


@given(st.lists(networks, min_size=1, max_size=20), st.lists(st.ip_addresses(), max_size=20))
def test_it_holds_what_ipaddress_says(entries, asked):
    made = listed("\n".join(f"{address}/{prefix}" for address, prefix in entries))
    plain = [ipaddress.ip_network(entry, strict=False) for entry in entries]
    for address in [*asked, *(network[0] for network in plain), *(network[-1] for network in plain)]:
        if address.version == 6 and address.ipv4_mapped:
            continue
        expected = any(address in network for network in plain if network.version == address.version)
        # A list entry within ::ffff:0:0/96 is IPv4, as every address there is.
        carried = any(n.version == 6 and n.prefixlen >= 96 and n[0].ipv4_mapped for n in plain)
        assert (address.packed in made) == expected or carried


class TestTheWay:
    DIRECT, PROXIED, BOTH, NEITHER = (packed(f"192.0.2.{n}") for n in (1, 2, 3, 4))
    direct, proxied = listed("192.0.2.1\n192.0.2.3"), listed("192.0.2.2\n192.0.2.3")

    def by_proxy(self, lists):
        return [lists.by_proxy(address) for address in (self.DIRECT, self.PROXIED, self.BOTH, self.NEITHER)]

    def test_without_a_list_all_go_by_proxy(self):
        assert self.by_proxy(ProxyLists()) == [True, True, True, True]
        assert not ProxyLists()

    def test_a_direct_list(self):
        assert self.by_proxy(ProxyLists(direct=self.direct)) == [False, True, False, True]
        assert ProxyLists(direct=self.direct)

    def test_a_proxy_list(self):
        assert self.by_proxy(ProxyLists(proxied=self.proxied)) == [False, True, True, False]

    def test_on_both_direct_wins(self):
        assert self.by_proxy(ProxyLists(self.direct, self.proxied)) == [False, True, False, False]

    def test_a_family_that_the_proxy_list_does_not_name_goes_directly(self):
        assert not ProxyLists(proxied=self.proxied).by_proxy(packed("2001:db8::1"))
