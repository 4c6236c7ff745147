"""What counts as a host name: nothing that some resolver would read as an address."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.policy.names import is_host_name, means_loopback, normal, to_a_labels


@pytest.mark.parametrize(
    "name",
    [
        "example.org",
        "localhost",
        "_dmarc.example.org",
        "xn--bcher-kva.example",
        "a-",
        "3com.com",
        "1e100.net",
    ],
)
def test_names(name):
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0x",
        "0177.0.0.1",
        "example.1",
        "::1",
        "fe80::1%eth0",
        "[::1]",
        "a..b",
        ".a",
        "a.",
        "a b",
        "a\nb",
        "a\n",
        "a/b",
        "a@b",
        "exämple.org",
        "a" * 64,
        ".".join(["a" * 63] * 4),
    ],
)
def test_not_names(name):
    assert not is_host_name(name)


@given(st.ip_addresses())
def test_no_address_is_a_name(address):
    assert not is_host_name(str(address))
    if isinstance(address, ipaddress.IPv4Address):
        for spelling in (str(int(address)), hex(int(address)), oct(int(address)).replace("0o", "0")):
            assert not is_host_name(spelling)


@given(st.text(max_size=80))
def test_any_text_gets_an_answer(text):
    assert is_host_name(normal(text)) in (True, False)


def test_names_are_compared_in_lower_case_without_the_root():
    assert normal("WWW.Example.ORG.") == "www.example.org"
    assert normal("\N{KELVIN SIGN}.org") != "k.org"


def test_loopback_names():
    assert means_loopback("localhost")
    assert means_loopback("db.localhost")
    assert not means_loopback("localhost.example.org")
    assert not means_loopback("notlocalhost")


def test_international_names_become_a_labels():
    assert to_a_labels("Bücher.Example.") == "xn--bcher-kva.example"
    assert to_a_labels("_x.BÜCHER.example") == "_x.xn--bcher-kva.example"


@pytest.mark.parametrize("name", ["faß.de", "a\u200cb.example", "ü" * 70 + ".de", "ü..de", "\udcff.de"])
def test_international_names_that_have_no_single_form(name):
    with pytest.raises(ValueError):
        to_a_labels(name)
