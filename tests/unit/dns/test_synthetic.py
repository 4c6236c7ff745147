"""One address a name, one name an address, for ever; and an end to it."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.dns.synthetic import CAPACITY, PoolExhausted, SyntheticPool, is_host_name


def test_the_first_names_get_the_first_addresses_after_the_wiring():
    pool = SyntheticPool()
    assert pool.addresses_for("a.example") == ("198.18.1.0", "fd6e:6574:6772::100")
    assert pool.addresses_for("b.example") == ("198.18.1.1", "fd6e:6574:6772::101")
    assert pool.addresses_for("a.example") == ("198.18.1.0", "fd6e:6574:6772::100")
    assert pool.addresses_for("A.Example.") == ("198.18.1.0", "fd6e:6574:6772::100")


def test_addresses_lead_back_to_their_names():
    pool = SyntheticPool()
    for name in (f"host{i}.example" for i in range(1000)):
        v4, v6 = pool.addresses_for(name)
        assert pool.name_of(v4) == pool.name_of(v6) == pool.name_of(f"::ffff:{v4}") == name
    assert pool.name_of(str(ipaddress.IPv6Address(v6).exploded)) == "host999.example"


@pytest.mark.parametrize(
    "address", ["198.18.0.1", "198.18.1.1", "198.19.255.255", "fd6e:6574:6772::1", "fd6e:6574:6772:1::100"]
)
def test_addresses_that_were_not_handed_out_have_no_name(address):
    pool = SyntheticPool()
    pool.addresses_for("only.example")
    assert pool.name_of(address) is None
    assert SyntheticPool.contains(address)


@pytest.mark.parametrize("address", ["198.17.255.255", "198.20.0.0", "::1", "fd6e:6574:6773::", "x", "", "1.2.3"])
def test_what_lies_outside(address):
    assert not SyntheticPool.contains(address)
    assert SyntheticPool().name_of(address) is None


def test_a_workload_that_asks_for_ever_runs_out_and_keeps_what_it_has():
    pool = SyntheticPool(capacity=3)
    given_out = {name: pool.addresses_for(name) for name in ("a", "b", "c")}
    with pytest.raises(PoolExhausted, match="all 3 "):
        pool.addresses_for("d")
    assert {name: pool.addresses_for(name) for name in given_out} == given_out
    assert len(pool) == 3


def test_the_whole_range_is_used_and_never_left():
    pool = SyntheticPool()
    for i in range(CAPACITY):
        v4, v6 = pool.addresses_for(str(i))
    assert (v4, v6) == ("198.19.255.254", "fd6e:6574:6772::1:fffe")
    assert pool.name_of(v4) == str(CAPACITY - 1)
    with pytest.raises(PoolExhausted):
        pool.addresses_for("one.more")


@pytest.mark.parametrize(
    "name",
    [
        "db",
        "example.org",
        "_dmarc.example.org",
        "xn--bcher-kva.example",
        "1password.com",
        "a-b.0x.c",
        "x" * 63,
    ],
)
def test_host_names(name):
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1", "169.254.169.254", "0x7f.1", "2130706433", "0x7f000001", "1.2.3.0x", "017700000001",
        "", ".", "a..b", "x" * 64, "a b", "a\\032b", "*.example.org", "::1", "ä.example", "a.example\n",
    ],
)  # fmt: skip
def test_what_must_never_reach_a_proxy_as_a_host(name):
    assert not is_host_name(name)


@given(st.lists(st.text("abc", min_size=1, max_size=3)))
def test_never_two_names_one_address(names):
    pool = SyntheticPool()
    addresses = {name: pool.addresses_for(name) for name in names}
    assert len({v4 for v4, _ in addresses.values()}) == len({v6 for _, v6 in addresses.values()}) == len(set(names))
    assert all(pool.name_of(v4) == pool.name_of(v6) == name for name, (v4, v6) in addresses.items())


@given(st.text())
def test_any_text_is_an_address_or_not(text):
    pool = SyntheticPool()
    assert pool.name_of(text) is None
    assert pool.contains(text) in (True, False)
