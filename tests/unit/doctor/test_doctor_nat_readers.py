"""What the kernel keeps of NAT rules, read back: recorded from a kernel, then changed at random.

``recorded/`` holds what a kernel answered in a fresh network namespace after the commands in ``COMMANDS`` (iptables
1.8.9; ``iptables`` is iptables-legacy for the one and iptables-nft for the other): ipt_getinfo followed by the
entries, and for nf_tables (message, family, length) before the attributes of each netlink message.
"""

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from netns_graft.doctor import nat
from netns_graft.linux import nft_rules, xt_rules, xt_targets
from netns_graft.linux.nat_rules import Action

RECORDED = Path(__file__).parent / "recorded"
COMMANDS = """\
iptables -t nat -A POSTROUTING -s 127.0.0.1 -j SNAT --to-source 172.31.5.9
iptables -t nat -N GRAFTX
iptables -t nat -A POSTROUTING -j GRAFTX
iptables -t nat -A GRAFTX ! -o eth+ -p tcp -j MASQUERADE --random
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -m comment --comment hi -p udp \\
    -j MASQUERADE --to-ports 100-200
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -p tcp -j DNAT --to-destination 10.0.0.5:80
iptables -t nat -A OUTPUT -m addrtype ! --dst-type LOCAL -j RETURN
iptables -t nat -A OUTPUT -o lo -p tcp --dport 5 -j REDIRECT --to-ports 8080
ip6tables -t nat -A POSTROUTING -s fd00::/12 ! -o lo -j MASQUERADE
ip6tables -t nat -A POSTROUTING ! -s ::1 -o lo -p tcp -j SNAT --to-source [fd00::9]:100-200
"""
V4 = (RECORDED / "iptables-nat.bin").read_bytes()
V6 = (RECORDED / "ip6tables-nat.bin").read_bytes()


def nft_messages() -> dict[int, list[nft_rules.Message]]:
    data, found = (RECORDED / "iptables-nft.bin").read_bytes(), {1: [], 4: [], 7: []}
    while data:
        message, family, length = struct.unpack_from("=BBI", data)
        found[message].append((family, data[6 : 6 + length]))
        data = data[6 + length :]
    return found


NFT = nft_messages()


def nft_tables(rules=NFT[7]):
    tables = nft_rules.tables(NFT[1], NFT[4])
    nft_rules.add_rules(tables, rules, lambda _family, _table, _name: [])
    return tables


def texts(table):
    return {name: [rule.text for rule in chain.rules] for name, chain in table.chains.items()}


def test_legacy_ipv4():
    table = xt_rules.parse(xt_rules.IPV4, V4[:84], V4[84:])
    assert texts(table) == {
        "PREROUTING": ["accept"],
        "INPUT": ["accept"],
        "OUTPUT": [
            "ip daddr != 127.0.0.0/8 meta l4proto tcp fib daddr type local dnat to 10.0.0.5:80",
            "fib daddr type != local return",
            'oifname "lo" meta l4proto tcp -m tcp redirect to :8080',
            "accept",
        ],
        "POSTROUTING": [
            "ip saddr 127.0.0.1 snat to 172.31.5.9",
            "jump GRAFTX",
            'ip saddr 172.17.0.0/16 oifname != "docker0" meta l4proto udp masquerade to :100-200',
            "accept",
        ],
        "GRAFTX": ['oifname != "eth*" meta l4proto tcp masquerade random', "return"],
    }
    assert {name: chain.hook for name, chain in table.chains.items()} == {
        "PREROUTING": None, "INPUT": None, "OUTPUT": "output", "POSTROUTING": "postrouting", "GRAFTX": None,
    }  # fmt: skip


def test_legacy_ipv6():
    table = xt_rules.parse(xt_rules.IPV6, V6[:84], V6[84:])
    assert texts(table)["POSTROUTING"] == [
        'ip6 saddr fd00::/12 oifname != "lo" masquerade',
        'ip6 saddr != ::1 oifname "lo" meta l4proto tcp snat to fd00::9:100-200',
        "accept",
    ]


def test_iptables_nft():
    (table,) = nft_tables()
    assert texts(table) == {
        "POSTROUTING": [
            "ip saddr 127.0.0.1 snat to 172.31.5.9",
            "jump GRAFTX",
            'oifname != "docker0" meta l4proto udp ip saddr 172.17.0.0/16 masquerade to :100-200',
        ],
        "GRAFTX": ['oifname != "eth*" meta l4proto tcp masquerade random'],
        "OUTPUT": [
            "meta l4proto tcp ip daddr != 127.0.0.0/8 fib daddr type local dnat to 10.0.0.5:80",
            "fib daddr type != local return",
            'oifname "lo" meta l4proto tcp dport 5 redirect to :8080',
        ],
    }
    assert [(chain.hook, chain.priority) for chain in table.chains.values()] == [
        ("postrouting", 100), (None, 0), ("output", -100),
    ]  # fmt: skip


def test_both_keepers_of_the_same_rules_touch_the_same_packets():
    legacy = nat.examine([xt_rules.parse(xt_rules.IPV4, V4[:84], V4[84:])], ["172.17.0.1", "10.1.1.1"])
    modern = nat.examine(nft_tables(), ["172.17.0.1", "10.1.1.1"])
    chains = ["POSTROUTING", "OUTPUT", "GRAFTX", "POSTROUTING", "OUTPUT"]
    assert sorted(rule.chain for rule in legacy.loopback) == sorted(rule.chain for rule in modern.loopback)
    assert {rule.chain for rule in legacy.loopback} == set(chains)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Some bytes of ``data`` replaced, perhaps its end cut off."""
    changed = bytearray(data)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=12)):
        changed[place] = value
    return bytes(changed[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


def follow(tables):
    touched = nat.examine(tables, ["10.1.1.1", "fd00::1"])
    assert all(rule.line().isascii() or rule.line() for rule in touched.loopback + touched.local)


@given(damaged(V4))
def test_any_legacy_blob_is_some_table(data):
    follow([xt_rules.parse(xt_rules.IPV4, data[:84], data[84:])])


@given(damaged(V6), st.sampled_from([xt_rules.IPV4, xt_rules.IPV6]))
def test_any_legacy_blob_is_some_table_of_either_family(data, layout):
    follow([xt_rules.parse(layout, data[:84], data[84:])])


@given(st.lists(st.sampled_from(NFT[7]).flatmap(lambda one: st.tuples(st.just(one[0]), damaged(one[1]))), max_size=4))
def test_any_nft_rules_are_some_rules(messages):
    follow(nft_tables(messages))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_nft_tables_and_chains_are_some_tables(table, chain):
    follow(nft_rules.tables([(2, table)], [(2, chain)]))


@given(st.sampled_from(NFT[4]).flatmap(lambda one: damaged(one[1])))
def test_a_damaged_chain_is_some_chain(chain):
    tables = nft_rules.tables(NFT[1], [*NFT[4], (2, chain)])
    nft_rules.add_rules(tables, NFT[7], lambda _family, _table, _name: [])
    follow(tables)


@given(st.binary(max_size=100))
def test_any_datagram_is_some_messages(data):
    for kind, payload in nft_rules.messages(data):
        assert 0 <= kind <= 0xFFFF
        assert len(payload) <= len(data) - 16


NAMES = st.sampled_from(["SNAT", "DNAT", "MASQUERADE", "REDIRECT"])


@given(NAMES, st.integers(0, 3), st.binary(max_size=64), st.booleans())
def test_any_target_of_xtables_has_words(name, revision, data, ipv6):
    words = xt_targets.translation(name, revision, data, ipv6)
    assert words is not None
    assert words.split()[0] == name.lower()


def test_a_set_that_cannot_be_read_may_match():
    # lookup: set "s", register 1; then masquerade
    def attribute(kind, value):
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    def expression(name, *fields):
        return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, b"".join(fields)))

    def number(kind, value):
        return attribute(kind, struct.pack("!I", value))

    load = expression("payload", number(1, 1), number(2, 1), number(3, 12), number(4, 4))
    look = expression("lookup", attribute(1, b"s\0"), number(2, 1))
    rule = attribute(1, b"nat\0") + attribute(2, b"POSTROUTING\0") + attribute(4, load + look + expression("masq"))
    tables = nft_rules.tables(NFT[1], NFT[4])

    def refuse(_family, _table, _name):
        raise PermissionError(1, "no")

    nft_rules.add_rules(tables, [(2, rule)], refuse)
    (found,) = tables[0].chains["POSTROUTING"].rules
    assert (found.text, found.action) == ("ip saddr @s masquerade", Action.TRANSLATE)
    assert [one.text for one in nat.examine(tables, []).loopback] == ["ip saddr @s masquerade"]
