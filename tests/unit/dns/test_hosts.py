"""The hosts file, as libc reads it."""

import dns.message
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.dns.hosts import HostsFile, parse_hosts
from netns_graft.wire import dns as wire

TEXT = """\
# the host's
127.0.0.1\tlocalhost
::1 localhost ip6-localhost
10.0.0.5   Db.Corp.Example db DB-alias.  # the old one
10.0.0.6 db
2001:DB8:0::5 db
fe80::1%eth0 scoped
nonsense line
10.0.0.300 bad
10.0.0.7
"""


def test_all_addresses_of_a_name_in_order():
    addresses, canonical = parse_hosts(TEXT)
    assert addresses["db"] == ["10.0.0.5", "10.0.0.6", "2001:db8::5"]
    assert addresses["db.corp.example"] == addresses["db-alias"] == ["10.0.0.5"]
    assert addresses["localhost"] == ["127.0.0.1", "::1"]
    assert canonical["10.0.0.5"] == "db.corp.example"
    assert set(addresses) == {"localhost", "ip6-localhost", "db.corp.example", "db", "db-alias"}


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "hosts"
    hosts = HostsFile(str(path))
    assert hosts.addresses_of("a") is None  # not there yet
    path.write_text("192.0.2.1 a\n")
    assert hosts.addresses_of("a") == ["192.0.2.1"]
    assert hosts.name_of("192.0.2.1") == "a"
    (tmp_path / "new").write_text("192.0.2.2 a\n")  # same size; replaced, as editors and config tools do it
    (tmp_path / "new").rename(path)
    assert hosts.addresses_of("a") == ["192.0.2.2"]
    path.unlink()
    assert hosts.addresses_of("a") is None


def test_bytes_that_are_no_text_spoil_only_their_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes(b"\xff\xfe \xe4\n192.0.2.1 a \xe4\n")
    assert HostsFile(str(path)).addresses_of("a") == ["192.0.2.1"]


QUESTION = wire.parse_query(dns.message.make_query("any.example", "ANY").to_wire())


@given(st.lists(st.tuples(st.sampled_from(["10.0.0.1", "::1", "fe80::1%", ""]), st.text(st.characters(codec=None)))))
def test_any_text_can_be_read_and_answered(lines):
    addresses, canonical = parse_hosts("\n".join(f"{start} {rest}" for start, rest in lines))
    for known in addresses.values():
        dns.message.from_wire(wire.answer_addresses(QUESTION, known, 1))
    for name in canonical.values():
        dns.message.from_wire(wire.answer_names(QUESTION, [name], 1))
