"""The host's resolv.conf as libc reads it, and the workload's."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.dns.resolv_conf import (
    Nameserver,
    asked_servers,
    loopback_resolvers,
    parse_resolv_conf,
    resolv_conf_for_workload,
)

CORP = """\
; made by the admin
domain old.example
nameserver 10.0.0.53
nameserver fe80::1%eth0   # the router
 nameserver 10.9.9.9
nameserverx 10.9.9.8
nameserver not-an-address
nameserver\t127.1;loopback
nameserver 10.0.0.4
search corp.example\texample.org
options ndots:2 timeout:3 edns0 attempts:4 rotate trust-ad bogus
sortlist 130.155.160.0/255.255.240.0
options single-request
"""


def test_what_libc_would_read():
    conf = parse_resolv_conf(CORP)
    assert [server.label for server in conf.nameservers] == [
        "10.0.0.53:53",
        "[fe80::1%eth0]:53",
        "127.0.0.1:53",
    ]
    assert conf.search == ("corp.example", "example.org")
    assert (conf.timeout, conf.attempts, conf.ndots, conf.rotate) == (3, 4, 2, True)
    assert "single-request" in conf.options


def test_an_empty_file_means_this_machine_and_libc_s_defaults():
    conf = parse_resolv_conf("")
    assert (conf.nameservers, conf.timeout, conf.attempts, conf.ndots, conf.rotate) == ((), 5, 2, 1, False)
    assert asked_servers(conf) == (Nameserver("127.0.0.1", 53),)


@pytest.mark.parametrize(
    "options, timeout, attempts, ndots",
    [
        ("timeout:0 attempts:0 ndots:0", 1, 1, 0),
        ("timeout:99 attempts:99 ndots:99", 30, 5, 15),
        ("timeout:x attempts: ndots", 1, 1, 1),
        ("timeout:2 timeout:7", 7, 2, 1),
        ("timeout:99999999999999999999", 30, 2, 1),
    ],
)
def test_numbers_stay_within_libc_s_limits(options, timeout, attempts, ndots):
    conf = parse_resolv_conf(f"options {options}")
    assert (conf.timeout, conf.attempts, conf.ndots) == (timeout, attempts, ndots)


def test_the_last_of_search_and_domain_wins():
    assert parse_resolv_conf("search a b\ndomain c d\n").search == ("c",)
    assert parse_resolv_conf("domain c\nsearch a b\nsearch\n").search == ("a", "b")


def test_loopback_resolvers():
    assert loopback_resolvers("nameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.1\n") == [
        "127.0.0.53",
        "::1",
    ]
    assert loopback_resolvers("nameserver 10.0.0.1\n") == []


def test_a_host_that_names_no_server_asks_its_own_loopback():
    """So does a program in a workload: where the host has no resolv.conf, none can be laid over it."""
    assert loopback_resolvers("") == loopback_resolvers("search corp.example\n") == ["127.0.0.1"]


def test_in_forward_mode_a_workload_keeps_the_host_s_search_list_and_options():
    text = resolv_conf_for_workload(CORP, "forward")
    assert text.splitlines()[1:] == [
        "search corp.example example.org",
        "nameserver 198.18.0.2",
        "options ndots:2 edns0 trust-ad single-request timeout:9 attempts:4",
    ]
    again = parse_resolv_conf(text)
    assert again.nameservers == (Nameserver("198.18.0.2"),)
    assert not again.rotate


def test_a_workload_waits_for_us_as_long_as_we_wait_for_all_servers():
    host = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n"
    assert parse_resolv_conf(resolv_conf_for_workload(host, "forward")).timeout == 15
    assert "options" not in resolv_conf_for_workload("nameserver 10.0.0.1\n", "forward")


def test_in_synthetic_mode_names_are_asked_as_they_stand():
    text = resolv_conf_for_workload(CORP, "synthetic", "198.18.0.2", "fd6e:6574:6772::2")
    assert text.splitlines()[1:] == [
        "search .",
        "nameserver 198.18.0.2",
        "nameserver fd6e:6574:6772::2",
        "options ndots:0",
    ]


def test_other_scripts_spoil_only_their_word():
    text = "nameserver 10.0.0.1 # café\nsearch bücher.example ok.example\nnameserver fe80::1%\udcff\n"
    conf = parse_resolv_conf(text)
    assert (conf.nameservers, conf.search) == ((Nameserver("10.0.0.1"),), ("ok.example",))


def check_any(text):
    """Whatever the host's file says: no error, servers that can be asked, and a file that any reader can read."""
    for server in asked_servers(parse_resolv_conf(text)):
        with contextlib.suppress(socket.gaierror):  # an interface that does not exist
            socket.getaddrinfo(server.address, server.port, flags=socket.AI_NUMERICHOST)
    loopback_resolvers(text)
    for mode in ("forward", "synthetic"):
        theirs = resolv_conf_for_workload(text, mode)
        assert theirs.isascii()
        assert parse_resolv_conf(theirs).nameservers == (Nameserver("198.18.0.2"),)


@given(st.text())
def test_any_text_can_be_read(text):
    check_any(text)


any_text = st.text(st.characters(codec=None))  # lone surrogates too: that is how bytes that are no UTF-8 are read
addresses = st.sampled_from(["10.0.0.1", "fe80::1%", "::1", "127.1", ""])


@given(
    st.lists(
        st.tuples(st.sampled_from(["nameserver", "search", "domain", "options ndots:", "options"]), addresses, any_text)
    )
)
def test_any_value_can_be_read(lines):
    check_any("\n".join(f"{keyword} {start}{value}" for keyword, start, value in lines))
