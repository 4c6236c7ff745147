"""Hosts as text: an address in whatever disguise is found, and a name that could do harm is none."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.dialling.place import canonical_host, host_port, is_name, literal


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("example.com", None),
        ("1.2.3.4.example", None),
        ("127.0.0.1 ", None),
        ("127.0.0.1\nx", None),
        ("", None),
        ("\0", None),
        ("4294967296", None),
    ],
)
def test_addresses_in_any_spelling(host: str, address: str | None) -> None:
    assert literal(host) == address


@given(st.ip_addresses())
def test_an_address_is_its_own_literal_and_the_kernel_agrees(address: object) -> None:
    text = literal(str(address))
    assert text is not None
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    assert socket.inet_ntop(family, socket.inet_pton(family, text)) == socket.inet_ntop(
        family, socket.inet_pton(family, str(literal(text)))
    )


@pytest.mark.parametrize("host", ["example.com", "a", "_srv.x-y.example", "xn--bcher-kva.example", "a" * 63])
def test_names(host: str) -> None:
    assert is_name(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a..b",
        "a.",
        "a b",
        "a\0b",
        "a\nb",
        "a:1",
        "a@b",
        "a/b",
        "[::1]",
        "ä",
        "a" * 64,
        "a." * 126 + "bc",
        "a\n",
    ],
)
def test_what_is_no_name(host: str) -> None:
    assert not is_name(host)


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("Example.COM.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[::1]", "::1"),
        ("[2001:DB8::0]", "2001:db8::"),
        ("10.1", "10.0.0.1"),
    ],
)
def test_one_spelling_for_each_host(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical


@pytest.mark.parametrize("host", ["", "[]", "[::1", "[127.0.0.1]", "a b", "a_ä..b", "[::1%lo]", "[::1%lo]]", "\udcff"])
def test_no_host_at_all(host: str) -> None:
    with pytest.raises(ValueError):
        canonical_host(host)


def test_host_and_port() -> None:
    assert host_port("::1", 80) == "[::1]:80"
    assert host_port("example.com", 80) == "example.com:80"
