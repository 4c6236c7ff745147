"""Canonical addresses, addresses within addresses, and what is protected."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.policy.addresses import canonical, embedded_ipv4, parse_network, protection


def packed(text):
    return ipaddress.ip_address(text).packed


def kind(text):
    address = canonical(packed(text))
    found = protection(4 if len(address) == 4 else 6, int.from_bytes(address))
    return found.kind if found else None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("2002:7f00:1:ffff::9", "loopback"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("64:ff9b::224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("198.18.0.1", "synthetic"),
        ("198.19.255.255", "synthetic"),
        ("fd6e:6574:6772::1", "synthetic"),
        ("126.255.255.255", None),
        ("128.0.0.0", None),
        ("169.253.255.255", None),
        ("198.17.255.255", None),
        ("198.20.0.0", None),
        ("223.255.255.255", None),
        ("10.0.0.1", None),
        ("64:ff9b::8.8.8.8", None),
        ("64:ff9b:1::127.0.0.1", None),
        ("2002:808:808::1", None),
        ("fec0::1", None),
        ("fd6e:6574:6773::1", None),
        ("fd00:ec2::255", None),
        ("2001:db8::1", None),
    ],
)
def test_protected(address, expected):
    assert kind(address) == expected


@pytest.mark.parametrize(
    ("address", "carried"),
    [
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("2002:c000:201::5", "192.0.2.1"),
        ("::192.0.2.1", "192.0.2.1"),
        ("::1", None),
        ("::", None),
        ("2001:db8::c000:201", None),
        ("192.0.2.1", None),
    ],
)
def test_the_ipv4_address_inside(address, carried):
    assert embedded_ipv4(packed(address)) == (packed(carried) if carried else None)


def test_a_mapped_address_is_the_ipv4_address():
    assert canonical(packed("::ffff:192.0.2.1")) == packed("192.0.2.1")
    assert canonical(packed("64:ff9b::192.0.2.1")) == packed("64:ff9b::192.0.2.1")
    assert parse_network("::ffff:10.0.0.0/104") == parse_network("10.0.0.0/8")
    assert parse_network("::/0").version == 6


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_an_address_has_4_or_16_bytes(length):
    with pytest.raises(ValueError):
        canonical(bytes(length))


@given(st.ip_addresses(v=4))
def test_every_disguise_of_an_ipv4_address_is_protected_alike(address):
    plain = kind(str(address))
    value = int(address)
    assert kind(str(ipaddress.IPv6Address((0xFFFF << 32) + value))) == plain
    assert kind(str(ipaddress.IPv6Address((0x64FF9B << 96) + value))) == plain
    assert kind(str(ipaddress.IPv6Address((0x2002 << 112) + (value << 80) + 7))) == plain


disguised = st.builds(
    lambda four, form: ipaddress.IPv6Address(form(int(four))),
    st.sampled_from(["127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255"]).map(
        ipaddress.IPv4Address
    ),
    st.sampled_from([lambda n: n, lambda n: (0x64FF9B << 96) + n, lambda n: (0x2002 << 112) + (n << 80) + 7]),
)


@given(st.ip_addresses() | disguised)
def test_the_range_of_a_protection_holds_its_address(address):
    address = canonical(address.packed)
    found = protection(4 if len(address) == 4 else 6, int.from_bytes(address))
    if found is not None:
        network = found.network
        whole = ipaddress.ip_network((network.base.to_bytes(len(address)), network.prefix))
        assert ipaddress.ip_address(address) in whole
