"""One workload's questions, answered: what needs no resolver."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import netns_graft
from netns_graft.dns.resolv_conf import Nameserver, ResolvConf
from netns_graft.dns.service import DnsService
from netns_graft.dns.synthetic import SyntheticPool
from netns_graft.flow import Outcome

NOBODY = ResolvConf((Nameserver("192.0.2.53"),))  # any question that went there would fail the test by its timeout


def query(name, rdtype="A", **options):
    return dns.message.make_query(name, rdtype, **options).to_wire()


def synthetic(**options):
    return DnsService("synthetic", SyntheticPool(), NOBODY, "/nonexistent", **options)


def forward(hosts="/nonexistent", **options):
    return DnsService("forward", SyntheticPool(), NOBODY, str(hosts), **options)


def addresses(answer):
    return [record.address for rrset in dns.message.from_wire(answer.reply).answer for record in rrset]


def rcode(answer):
    return dns.rcode.to_text(dns.message.from_wire(answer.reply).rcode())


def test_a_name_gets_an_address_of_its_own_in_both_families():
    service = synthetic()
    answer = service.answer_now(query("WWW.example.org"), udp=True)
    assert addresses(answer) == ["198.18.1.0"]
    assert (answer.name, answer.qtype, answer.outcome, answer.error) == ("www.example.org", "A", Outcome.OK, None)
    assert (answer.upstream, answer.allowed, answer.rule) == ("synthetic", True, "default")
    assert addresses(service.answer_now(query("www.example.org", "AAAA"), udp=False)) == ["fd6e:6574:6772::100"]
    assert addresses(service.answer_now(query("other.example.org"), udp=True)) == ["198.18.1.1"]
    assert addresses(service.answer_now(query("db", "ANY"), udp=True)) == ["198.18.1.2", "fd6e:6574:6772::102"]
    assert service.name_of("198.18.1.0") == service.name_of("fd6e:6574:6772::100") == ("www.example.org", "synthetic")
    assert service.name_of("198.18.1.3") is None


@pytest.mark.parametrize("rdtype", ["MX", "TXT", "HTTPS", "SRV", "PTR", "SOA", "NS", "TYPE65000"])
def test_other_types_are_nodata_and_use_up_no_address(rdtype):
    service = synthetic()
    answer = service.answer_now(query("example.org", rdtype), udp=True)
    assert (rcode(answer), addresses(answer), answer.outcome) == ("NOERROR", [], Outcome.OK)
    assert addresses(service.answer_now(query("first.example"), udp=True)) == ["198.18.1.0"]


@pytest.mark.parametrize(
    "name, rdtype",
    [
        ("1.1.18.198.in-addr.arpa", "PTR"),
        ("1.0.0.10.in-addr.arpa", "A"),
        ("169.254.169.254", "A"),
        ("0x7f.1", "AAAA"),
        ("a b.example", "A"),
        ("*.example", "A"),
    ],
)
def test_reverse_names_and_what_is_no_host_name_do_not_exist(name, rdtype):
    service = synthetic()
    answer = service.answer_now(query(name, rdtype), udp=True)
    assert (rcode(answer), answer.outcome, answer.error) == ("NXDOMAIN", Outcome.OK, "NXDOMAIN")
    assert service.name_of("198.18.1.0") is None


@pytest.mark.parametrize("make", [synthetic, forward])
@pytest.mark.parametrize("name", ["localhost", "db.LOCALHOST"])
def test_localhost_is_the_workload_itself(make, name):
    service = make(allows=lambda name: (False, "nothing"))
    assert addresses(service.answer_now(query(name), udp=True)) == ["127.0.0.1"]
    assert addresses(service.answer_now(query(name, "AAAA"), udp=True)) == ["::1"]
    assert addresses(service.answer_now(query(name, "MX"), udp=True)) == []


@pytest.mark.parametrize("make", [synthetic, forward])
def test_the_host_itself_has_a_synthetic_address(make):
    service = make(allows=lambda name: (False, "nothing"))
    assert addresses(service.answer_now(query("host.containers.internal"), udp=True)) == ["198.18.1.0"]
    assert service.name_of("fd6e:6574:6772::100") == ("host.containers.internal", "synthetic")


def test_when_all_addresses_are_gone_new_names_fail_and_old_ones_stay():
    service = DnsService("synthetic", SyntheticPool(capacity=1))
    first = addresses(service.answer_now(query("a"), udp=True))
    answer = service.answer_now(query("b"), udp=True)
    assert (rcode(answer), answer.outcome) == ("SERVFAIL", Outcome.UPSTREAM_FAILED)
    assert "in use" in answer.error
    assert addresses(service.answer_now(query("a"), udp=True)) == first


@pytest.mark.parametrize("make", [synthetic, forward])
@pytest.mark.parametrize("rdtype", ["AXFR", "IXFR"])
def test_no_zone_transfers(make, rdtype):
    message = dns.message.make_query("example.org", rdtype)
    answer = make().answer_now(message.to_wire(), udp=False)
    assert (rcode(answer), answer.outcome) == ("NOTIMP", Outcome.REFUSED)


def test_other_classes_are_refused_in_synthetic_mode():
    answer = synthetic().answer_now(query("version.bind", "TXT", rdclass="CH"), udp=True)
    assert (rcode(answer), answer.outcome) == ("REFUSED", Outcome.REFUSED)


@pytest.mark.parametrize("make", [synthetic, forward])
def test_garbage_is_answered_by_its_header_or_not_at_all(make):
    answer = make().answer_now(b"\x12\x34\1\0\0\2\0\0\0\0\0\0", udp=True)
    assert dns.message.from_wire(answer.reply).id == 0x1234
    assert (rcode(answer), answer.name, answer.outcome) == ("FORMERR", "", Outcome.REFUSED)
    assert "2 questions" in answer.error
    assert make().answer_now(b"x", udp=True).reply is None
    notify = dns.message.make_query("example.org", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert rcode(make().answer_now(notify.to_wire(), udp=True)) == "NOTIMP"


def test_a_name_that_policy_forbids_is_refused_and_asked_of_nobody(tmp_path):
    (tmp_path / "hosts").write_text("10.0.0.5 db.corp.example\n")
    service = forward(tmp_path / "hosts", allows=lambda name: (False, f"no {name}"))
    for name in ("secret.attacker.example", "db.corp.example"):
        for answer in (
            service.answer_now(query(name), udp=True),
            asyncio.run(service.answer(query(name), udp=False)),
        ):
            assert (rcode(answer), answer.outcome) == ("REFUSED", Outcome.DENIED)
            assert (answer.allowed, answer.rule, answer.upstream) == (False, f"no {name}", None)


def test_the_hosts_file_comes_first(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.5 db.corp.example DB\n10.0.0.6 db\n10.0.0.1 gw\nfd00::1 gw\n")
    service = forward(hosts, allows=lambda name: (True, "corp"))
    answer = service.answer_now(query("Db"), udp=True)
    assert addresses(answer) == ["10.0.0.5", "10.0.0.6"]
    assert (answer.upstream, answer.rule, answer.outcome) == ("hosts", "corp", Outcome.OK)
    assert service.name_of("10.0.0.6") == ("db", "dns")
    assert addresses(service.answer_now(query("gw", "AAAA"), udp=True)) == ["fd00::1"]
    nodata = service.answer_now(query("db", "AAAA"), udp=True)  # libc asks no resolver for it either
    assert (rcode(nodata), addresses(nodata)) == ("NOERROR", [])
    pointer = service.answer_now(query("5.0.0.10.in-addr.arpa", "PTR"), udp=True)
    (record,) = dns.message.from_wire(pointer.reply).answer[0]
    assert record.target.to_text() == "db.corp.example."
    pointer = service.answer_now(query(f"1.{'0.' * 27}0.0.d.f.ip6.arpa", "PTR"), udp=True)
    assert dns.message.from_wire(pointer.reply).answer[0][0].target.to_text() == "gw."
    hosts.write_text("10.0.0.77 db\n")
    assert addresses(service.answer_now(query("db"), udp=True)) == ["10.0.0.77"]


@pytest.mark.parametrize(
    "name, rdtype", [("db", "MX"), ("other", "A"), ("9.0.0.10.in-addr.arpa", "PTR"), ("x._tcp.lan", "PTR")]
)
def test_what_the_hosts_file_does_not_know_must_be_forwarded(tmp_path, name, rdtype):
    (tmp_path / "hosts").write_text("10.0.0.5 db\n")
    assert forward(tmp_path / "hosts").answer_now(query(name, rdtype), udp=True) is None


def test_synthetic_addresses_are_looked_up_nowhere():
    answer = forward().answer_now(query("0.1.18.198.in-addr.arpa", "PTR"), udp=True)
    assert (rcode(answer), answer.upstream) == ("NXDOMAIN", "synthetic")


def test_an_answer_of_ours_that_is_long_for_udp_is_truncated(tmp_path):
    (tmp_path / "hosts").write_text("".join(f"10.0.1.{i} many\n" for i in range(200)))
    service = forward(tmp_path / "hosts")
    cut = dns.message.from_wire(service.answer_now(query("many"), udp=True).reply)
    assert cut.flags & dns.flags.TC
    assert cut.answer == []
    assert len(addresses(service.answer_now(query("many", payload=4096), udp=True))) == 200
    assert len(addresses(service.answer_now(query("many"), udp=False))) == 200


def test_what_is_learnt_stays_bounded_and_what_is_used_is_kept(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"10.0.0.{i} h{i}\n" for i in range(5)) + "198.18.1.5 h5\n")
    service = forward(hosts, most_learnt=3)
    for i in range(3):
        service.answer_now(query(f"h{i}"), udp=True)
    assert service.name_of("10.0.0.0") == ("h0", "dns")  # used: h1 is the oldest now
    for i in (3, 4, 5):
        service.answer_now(query(f"h{i}"), udp=True)
    names = [service.name_of(f"10.0.0.{i}") for i in range(5)]
    assert names == [("h0", "dns"), None, None, ("h3", "dns"), ("h4", "dns")]
    assert service.name_of("198.18.1.5") is None  # no hosts file or resolver names a synthetic address


def test_the_import_of_dnspython_waits_for_the_first_question():
    code = (
        "import sys, netns_graft.dns.service as s, netns_graft.dns.synthetic as p\n"
        "service = s.DnsService('synthetic', p.SyntheticPool())\n"
        "assert 'dns' not in sys.modules\n"
        "service.prepare()\n"
        "assert 'dns.message' in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(netns_graft.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


SEEDS = [
    query("example.org"),
    query("localhost", "AAAA", use_edns=0),
    query("1.0.0.10.in-addr.arpa", "PTR"),
    query("host.containers.internal", "ANY", want_dnssec=True),
]


@st.composite
def mangled(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), mangled()), st.booleans(), st.sampled_from([synthetic, forward]))
def test_fuzz_any_bytes_are_answered(data, udp, make):
    answer = make().answer_now(data, udp=udp)
    if answer is None:
        assert make is forward
    elif answer.reply is not None:
        assert dns.message.from_wire(answer.reply).id == int.from_bytes(data[:2], "big")
    else:
        assert len(data) < 12 or data[2] & 0x80
