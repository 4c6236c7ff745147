"""The little language of ``--allow`` and ``--deny``: what it takes, and what it says about the rest."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.policy.patterns import PatternError, parse_pattern

ANY = (0, 65535)


def parsed(text):
    """(host or network as text, (first port, last port))"""
    pattern = parse_pattern(text)
    where = pattern.host
    if pattern.network is not None:
        assert where is None
        network = pattern.network
        where = str(
            ipaddress.ip_network((network.base.to_bytes(4 if network.version == 4 else 16), network.prefix))
        )
    return where, (pattern.first_port, pattern.last_port)


@pytest.mark.parametrize(
    ("text", "where", "ports"),
    [
        ("example.org", "example.org", ANY),
        ("example.org:443", "example.org", (443, 443)),
        ("Example.ORG.:443", "example.org", (443, 443)),
        ("*.example.org", ".example.org", ANY),
        ("*.Example.org:8000-8100", ".example.org", (8000, 8100)),
        ("localhost", "localhost", ANY),
        ("my_db", "my_db", ANY),
        ("bücher.example:80", "xn--bcher-kva.example", (80, 80)),
        ("*.bücher.example", ".xn--bcher-kva.example", ANY),
        ("host.containers.internal:5432", "host.containers.internal", (5432, 5432)),
        ("10.0.0.0/8", "10.0.0.0/8", ANY),
        ("10.0.0.0/8:22", "10.0.0.0/8", (22, 22)),
        ("192.0.2.7", "192.0.2.7/32", ANY),
        ("192.0.2.7:1-65535", "192.0.2.7/32", (1, 65535)),
        ("0.0.0.0/0", "0.0.0.0/0", ANY),
        ("::1", "::1/128", ANY),
        ("::/0", "::/0", ANY),
        ("2001:db8::/32", "2001:db8::/32", ANY),
        ("2001:DB8::1", "2001:db8::1/128", ANY),
        ("[2001:db8::/32]:443", "2001:db8::/32", (443, 443)),
        ("[2001:db8::1]", "2001:db8::1/128", ANY),
        ("[::1]:80-90", "::1/128", (80, 90)),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24", ANY),
        (":443", None, (443, 443)),
        (":8000-8100", None, (8000, 8100)),
    ],
)
def test_patterns(text, where, ports):
    assert parsed(text) == (where, ports)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", ":port"),
        (" example.org", "white space", ""),
        ("a.org b.org", "white space", "one pattern to each option"),
        ("a.org\n", "white space", ""),
        ("https://example.org/x?y", "URL", "example.org:443"),
        ("http://u:p@example.org:8080/", "URL", "write host:port: example.org:8080"),
        ("ssh://[2001:db8::1]", "URL", "[2001:db8::1]:22"),
        ("example.org/path", "neither a host nor a CIDR", "without a path"),
        ("example.org:0", "between 1 and 65535", None),
        ("example.org:65536", "between 1 and 65535", None),
        ("example.org:http", "no port", "a number"),
        ("example.org:", "no port", "a number"),
        ("example.org:-1", "no port", ""),
        ("example.org:1-", "no port", ""),
        ("example.org:٤٤", "no port", ""),
        (":9000-8000", "ends before it starts", "8000-9000"),
        (":", "no port", ""),
        ("10.0.0.1/8", "bits set", "write 10.0.0.0/8, or 10.0.0.1 for the one address"),
        ("[2001:db8::1/32]:443", "bits set", "2001:db8::/32"),
        ("10.0.0.0/33", "no IPv4 network", None),
        ("10.0.0.0/255.0.0.0", "no prefix length", None),
        ("10.0.0.0/", "no prefix length", None),
        ("2001:db8::/32:443", "no prefix length", "write [2001:db8::/32]:443"),
        ("10.0.0", "no IPv4 address", None),
        ("127.1", "no IPv4 address", None),
        ("300.1.1.1", "no IPv4 address", None),
        ("1.2.3.4.5", "no IPv4 address", None),
        ("010.0.0.1", "no IPv4 address", None),
        ("0x7f000001", "no IPv4 address", None),
        ("2130706433", "no IPv4 address", None),
        ("1:2:3", "no IPv6 address", None),
        ("fe80::1%eth0", "has a zone", "write fe80::1"),
        ("::g", "no IPv6 address", None),
        ("[::1", "no closing bracket", None),
        ("[10.0.0.1]:80", "only IPv6 goes in brackets", None),
        ("[example.org]:80", "only IPv6 goes in brackets", None),
        ("[2001:db8::]/32:443", "goes on after the bracket", "[2001:db8::/32]"),
        ("[::1]80", "goes on after the bracket", None),
        ("*", "matches nothing", "--default"),
        ("*:443", "matches nothing", ":PORT"),
        ("www.*.org", "only at the start", "*.example.org"),
        ("*example.org", "only at the start", ""),
        ("*.*.org", "only at the start", ""),
        ("*.", "no host name", None),
        ("a..b", "no host name", None),
        (".example.org", "no host name", None),
        ("exa$mple.org", "no host name", None),
        ("user@example.org", "no host name", None),
        ("a" * 64 + ".org", "no host name", None),
        ("faß.de", "different domains", "xn--"),
    ],
)
def test_what_is_no_pattern_is_an_error_that_says_why(text, message, hint):
    with pytest.raises(PatternError) as caught:
        parse_pattern(text)
    assert message in str(caught.value)
    if hint is None:
        assert caught.value.hint is None
    else:
        assert hint in caught.value.hint


@given(st.text(max_size=40) | st.text("0123456789abcdef:./[]*-%", max_size=40))
def test_any_text_is_a_pattern_or_our_error(text):
    try:
        pattern = parse_pattern(text)
    except PatternError as error:
        assert str(error)
    else:
        assert pattern.host is None or pattern.network is None
        assert 0 <= pattern.first_port <= pattern.last_port <= 65535
        assert pattern.any_port == ((pattern.first_port, pattern.last_port) in ((0, 65535), (1, 65535)))


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_and_a_port(address, port):
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    pattern = parse_pattern(text)
    assert (pattern.first_port, pattern.last_port) == (port, port)
    assert pattern.host is None
    assert pattern.network.base & pattern.network.mask == pattern.network.base
