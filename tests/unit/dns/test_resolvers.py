"""Questions forwarded to resolvers on loopback: good ones, slow ones, liars, and many at once."""

import asyncio
import collections
import contextlib
import os
import socket

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from netns_graft.dns.resolv_conf import Nameserver, ResolvConf
from netns_graft.dns.service import DnsService
from netns_graft.dns.synthetic import SyntheticPool
from netns_graft.flow import Outcome


def query(name="www.example.org", rdtype="A", **options):
    return dns.message.make_query(name, rdtype, **options)


def service(*servers, timeout=5.0, resolv_conf=None, **options):
    """A forward-mode service that asks those servers (LoopbackServers or Nameservers) alone."""
    nameservers = tuple(getattr(server, "nameserver", server) for server in servers)
    conf = resolv_conf or ResolvConf(nameservers, timeout=timeout, attempts=options.pop("attempts", 2))
    return DnsService("forward", SyntheticPool(), conf, "/nonexistent", **options)


def reply_to(asked, *addresses, rcode=dns.rcode.NOERROR):
    reply = dns.message.make_response(asked)
    reply.set_rcode(rcode)
    if addresses:
        reply.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", *addresses))
    return reply


def good(asked, _):
    return reply_to(asked, "192.0.2.1").to_wire()


def silent(asked, _):
    return None


def failing(rcode):
    return lambda asked, _: reply_to(asked, rcode=rcode).to_wire()


def addresses(answer):
    return [record.address for rrset in dns.message.from_wire(answer.reply).answer for record in rrset]


@contextlib.contextmanager
def closed_port():
    """A port of 127.0.0.1 that answers nobody but is ours: its UDP socket has another peer, its TCP one does not
    listen."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            udp.connect(("127.0.0.1", 9))
            try:
                tcp.bind(udp.getsockname())
            except OSError:
                continue  # somebody else's by TCP
            yield Nameserver(*udp.getsockname())
            return


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("udp", [True, False])
def test_a_question_is_forwarded_and_its_reply_teaches_a_name(loopback_server, udp):
    async def run():
        async with loopback_server(good) as server:
            names = service(server, allows=lambda name: (True, f"rule for {name}"))
            asked = query("WWW.Example.org", id=4711)
            assert names.answer_now(asked.to_wire(), udp=udp) is None
            answer = await names.answer(asked.to_wire(), udp=udp)
            assert asked.is_response(dns.message.from_wire(answer.reply))
            assert addresses(answer) == ["192.0.2.1"]
            assert (answer.name, answer.qtype, answer.outcome) == ("www.example.org", "A", Outcome.OK)
            assert (answer.error, answer.upstream) == (None, server.nameserver.label)
            assert (answer.allowed, answer.rule) == (True, "rule for www.example.org")
            assert names.name_of("192.0.2.1") == ("www.example.org", "dns")
            assert server.by_tcp == (not udp)

    asyncio.run(run())


@pytest.mark.parametrize("udp", [True, False])
def test_the_bytes_go_out_as_they_came_but_for_the_id(loopback_server, udp):
    async def run():
        async with loopback_server(good) as server:
            names = service(server)
            options = [dns.edns.GenericOption(10, b"cookie!!"), dns.edns.ECSOption("192.0.2.0", 24)]
            asked = query("MiXeD.example", "DNSKEY", want_dnssec=True, payload=1400, options=options).to_wire()
            answer = await names.answer(asked, udp=udp)
            assert [data[2:] for data, _ in server.asked] == [asked[2:]]
            assert answer.reply[:2] == asked[:2]

    asyncio.run(run())


def test_each_question_has_an_id_and_a_port_of_its_own(loopback_server):
    async def run():
        async with loopback_server(silent) as server:
            names = service(server, timeout=0.2, attempts=1)
            questions = [query(f"host{i}.example", id=1).to_wire() for i in range(8)]
            await asyncio.gather(*(names.answer(data, udp=True) for data in questions))
            assert len(server.asked) == 8
            assert len({port for _, (_, port) in server.asked}) == 8
            assert len({data[:2] for data, _ in server.asked}) > 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "rcode, error", [(dns.rcode.NXDOMAIN, "NXDOMAIN"), (dns.rcode.FORMERR, "FORMERR"), (dns.rcode.NOERROR, None)]
)
def test_what_the_resolver_says_is_passed_on(loopback_server, rcode, error):
    async def run():
        async with loopback_server(failing(rcode)) as server, loopback_server(good) as spare:
            answer = await service(server, spare).answer(query().to_wire(), udp=True)
            assert dns.message.from_wire(answer.reply).rcode() == rcode
            assert (answer.outcome, answer.error) == (Outcome.OK, error)
            assert spare.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
def test_a_server_that_will_not_help_is_followed_by_the_next(loopback_server, rcode):
    async def run():
        async with loopback_server(failing(rcode)) as server, loopback_server(good) as spare:
            answer = await service(server, spare).answer(query().to_wire(), udp=True)
            assert (addresses(answer), answer.upstream) == (["192.0.2.1"], spare.nameserver.label)
            alone = await service(server).answer(query().to_wire(), udp=True)
            assert dns.message.from_wire(alone.reply).rcode() == rcode
            text = f"{server.nameserver.label} answered {dns.rcode.to_text(rcode)}"
            assert (alone.outcome, alone.error) == (Outcome.UPSTREAM_FAILED, text)

    asyncio.run(run())


@pytest.mark.parametrize("udp", [True, False])
def test_a_silent_server_costs_its_timeout_once(loopback_server, udp):
    async def run():
        async with loopback_server(silent) as dead, loopback_server(good) as spare:
            names = service(dead, spare, timeout=0.05)
            for name in ("a.example", "b.example", "c.example"):
                answer = await names.answer(query(name).to_wire(), udp=udp)
                assert answer.upstream == spare.nameserver.label
            assert (len(dead.asked), len(spare.asked)) == (1, 3)

    asyncio.run(run())


@pytest.mark.parametrize("udp", [True, False])
def test_a_closed_port_is_passed_over_at_once(loopback_server, udp):
    async def run():
        async with loopback_server(good) as spare:
            with closed_port() as closed:
                answer = await service(closed, spare).answer(query().to_wire(), udp=udp)
                assert answer.upstream == spare.nameserver.label
                answer = await service(closed).answer(query().to_wire(), udp=udp)
                assert dns.message.from_wire(answer.reply).rcode() == dns.rcode.SERVFAIL
                error = f"{closed.label}: Connection refused"
                assert (answer.outcome, answer.error) == (Outcome.REFUSED, error)

    asyncio.run(run())


def test_when_nobody_answers_the_program_is_told(loopback_server):
    async def run():
        async with loopback_server(silent) as first, loopback_server(silent) as second:
            answer = await service(first, second, timeout=0.02).answer(query().to_wire(), udp=True)
            assert dns.message.from_wire(answer.reply).rcode() == dns.rcode.SERVFAIL
            assert (answer.outcome, answer.upstream) == (Outcome.TIMEOUT, second.nameserver.label)
            assert (len(first.asked), len(second.asked)) == (2, 2)

    asyncio.run(run())


def test_rotate_begins_with_another_server_each_time(loopback_server):
    async def run():
        async with loopback_server(good) as first, loopback_server(good) as second:
            conf = ResolvConf((first.nameserver, second.nameserver), rotate=True)
            names = service(resolv_conf=conf)
            for i in range(4):
                await names.answer(query(f"{i}.example").to_wire(), udp=True)
            assert (len(first.asked), len(second.asked)) == (2, 2)

    asyncio.run(run())


def test_an_unreachable_scope_is_a_failure_of_that_server():
    async def run():
        server = Nameserver("fe80::1%gone-if0")
        for udp in (True, False):
            answer = await service(server).answer(query().to_wire(), udp=udp)
            assert dns.message.from_wire(answer.reply).rcode() == dns.rcode.SERVFAIL
            assert answer.upstream == "[fe80::1%gone-if0]:53"

    asyncio.run(run())


def lies(asked, _):
    """Everything that does not belong to the question, and then what does."""
    truth = reply_to(asked, "192.0.2.1").to_wire()
    poison = reply_to(asked, "192.0.2.66")
    wrong_id = (poison.id ^ 1).to_bytes(2, "big") + poison.to_wire()[2:]
    other_question = reply_to(query("bank.example", id=asked.id), "192.0.2.66").to_wire()
    not_a_reply = poison.to_wire()[:2] + b"\1" + poison.to_wire()[3:]
    return [wrong_id, other_question, not_a_reply, b"", b"\0", poison.to_wire()[:11], truth]


@pytest.mark.parametrize("udp", [True, False])
def test_replies_that_do_not_belong_to_the_question_are_ignored(loopback_server, udp):
    async def run():
        async with loopback_server(lies) as server:
            names = service(server)
            answer = await names.answer(query().to_wire(), udp=udp)
            assert addresses(answer) == ["192.0.2.1"]
            assert names.name_of("192.0.2.66") is None

    asyncio.run(run())


def test_a_reply_from_elsewhere_never_arrives(loopback_server):
    """The best-informed forger: knows ID, question and port, but not the resolver's socket."""

    async def run():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.bind(("127.0.0.2", 0))

            def forged_first(asked, address):
                forger.sendto(reply_to(asked, "192.0.2.66").to_wire(), address)
                return reply_to(asked, "192.0.2.1").to_wire()

            async with loopback_server(forged_first) as server:
                assert addresses(await service(server).answer(query().to_wire(), udp=True)) == ["192.0.2.1"]

    asyncio.run(run())


MANY = [f"192.0.2.{i}" for i in range(200)]


def truncated_by_udp(server):
    def respond(asked, _):
        reply = reply_to(asked, *MANY)
        if server.by_tcp:
            return reply.to_wire()
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire()

    return respond


class Front(asyncio.DatagramProtocol):
    """What the forwarder does with a service: UDP and TCP on one port, for a foreign client to ask."""

    def __init__(self, names, both_protocols):
        self.names = names
        self.both_protocols = both_protocols
        self.tasks = asyncio.TaskGroup()

    async def __aenter__(self):
        await self.tasks.__aenter__()
        self.udp, self.tcp, self.port = await self.both_protocols(lambda: self, self.converse)
        return self

    async def __aexit__(self, *failure):
        self.udp.close()
        self.tcp.close()
        await self.tcp.wait_closed()
        await self.tasks.__aexit__(*failure)

    def datagram_received(self, data, addr):
        self.tasks.create_task(self.answer(data, addr))

    async def answer(self, data, addr):
        answer = await self.names.answer(data, udp=True)
        self.udp.sendto(answer.reply, addr)

    async def converse(self, reader, writer):
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = await self.names.answer(await reader.readexactly(length), udp=False)
        writer.write(len(answer.reply).to_bytes(2, "big") + answer.reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("split", [False, True])
def test_a_truncated_reply_is_passed_on_and_a_client_gets_the_rest_by_tcp(loopback_server, both_protocols, split):
    async def run():
        async with loopback_server(good, split=split) as server:
            server.respond = truncated_by_udp(server)
            async with Front(service(server), both_protocols) as front:
                reply, used_tcp = await dns.asyncquery.udp_with_fallback(query(), "127.0.0.1", 5, front.port)
                assert used_tcp
                assert sorted(record.address for record in reply.answer[0]) == sorted(MANY)
            assert server.by_tcp == 1

    asyncio.run(run())


def test_a_resolver_that_sends_more_than_was_asked_for_is_cut_to_size(loopback_server):
    async def run():
        async with loopback_server(lambda asked, _: reply_to(asked, *MANY).to_wire()) as server:
            names = service(server)
            answer = await names.answer(query(use_edns=False).to_wire(), udp=True)
            assert len(answer.reply) <= 512
            assert dns.message.from_wire(answer.reply).flags & dns.flags.TC
            answer = await names.answer(query(payload=4096).to_wire(), udp=True)
            assert sorted(addresses(answer)) == sorted(MANY)

    asyncio.run(run())


@pytest.mark.parametrize("after", [0, 1, 2, 20])
def test_a_resolver_that_hangs_up_is_followed_by_the_next(loopback_server, after):
    async def run():
        async with loopback_server(good, hang_up=after) as rude, loopback_server(good) as spare:
            answer = await service(rude, spare).answer(query().to_wire(), udp=False)
            assert (addresses(answer), answer.upstream) == (["192.0.2.1"], spare.nameserver.label)
            alone = await service(rude).answer(query().to_wire(), udp=False)
            assert dns.message.from_wire(alone.reply).rcode() == dns.rcode.SERVFAIL
            assert "without an answer" in alone.error

    asyncio.run(run())


def test_a_malformed_reply_is_passed_on_and_teaches_nothing(loopback_server):
    async def run():
        async with loopback_server(lambda asked, _: good(asked, _)[:-1]) as server:
            names = service(server)
            asked = query().to_wire()
            answer = await names.answer(asked, udp=True)
            assert answer.reply == asked[:2] + good(dns.message.from_wire(asked), None)[2:-1]
            assert names.name_of("192.0.2.1") is None

    asyncio.run(run())


def test_the_same_question_at_once_is_sent_once(loopback_server):
    async def run():
        async with loopback_server(good) as server:
            names = service(server)
            asked = [query(id=i) for i in range(1, 21)]
            answers = await asyncio.gather(*(names.answer(data.to_wire(), udp=True) for data in asked))
            for question, answer in zip(asked, answers, strict=True):
                assert question.is_response(dns.message.from_wire(answer.reply))
            assert len(server.asked) == 1
            await names.answer(query(id=99).to_wire(), udp=True)
            assert len(server.asked) == 2  # nothing is cached

    asyncio.run(run())


def test_one_asker_that_leaves_takes_nothing_from_another(loopback_server):
    async def run():
        arrived, released = asyncio.Event(), asyncio.Event()

        async with loopback_server(silent) as server:

            def later(asked, address):
                reply = good(asked, address)
                asyncio.get_running_loop().call_soon(arrived.set)
                tasks.create_task(send_released(reply, address))

            async def send_released(reply, address):
                await released.wait()
                server.udp.sendto(reply, address)

            server.respond = later
            names = service(server)
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(names.answer(query(id=1).to_wire(), udp=True))
                second = tasks.create_task(names.answer(query(id=2).to_wire(), udp=True))
                await arrived.wait()
                first.cancel()
                await asyncio.wait([first])
                released.set()
                assert addresses(await second) == ["192.0.2.1"]

    asyncio.run(run())


def test_five_hundred_questions_at_once_and_no_descriptor_left(loopback_server):
    async def run():
        async with loopback_server(good) as server:
            names = service(server)
            before = open_descriptors()
            for udp in (True, False):
                questions = [query(f"host{i}.example") for i in range(500)]
                answers = await asyncio.gather(*(names.answer(q.to_wire(), udp=udp) for q in questions))
                for question, answer in zip(questions, answers, strict=True):
                    assert question.is_response(dns.message.from_wire(answer.reply))
                    assert answer.outcome is Outcome.OK
                if udp:  # by TCP the server's ends may still be open; the suite's own check sees to those
                    assert open_descriptors() <= before

    asyncio.run(run())


def test_too_many_under_way_are_failed_at_once(loopback_server):
    async def run():
        async with loopback_server(silent) as server:
            names = service(server, timeout=0.05, attempts=1, most_under_way=3)
            answers = await asyncio.gather(*(names.answer(query(f"{i}.example").to_wire(), udp=True) for i in range(5)))
            errors = collections.Counter(answer.error for answer in answers)
            silence = f"{server.nameserver.label} did not answer"
            assert errors == {"3 questions under way": 2, silence: 3}
            assert all(dns.message.from_wire(answer.reply).rcode() == dns.rcode.SERVFAIL for answer in answers)
            server.respond = good
            assert addresses(await names.answer(query().to_wire(), udp=True)) == ["192.0.2.1"]

    asyncio.run(run())


@pytest.mark.parametrize("udp", [True, False])
def test_closing_ends_what_is_under_way(loopback_server, udp):
    async def run():
        arrived = asyncio.Event()

        async with loopback_server(lambda *_: arrived.set()) as server:
            names = service(server)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(names.answer(query().to_wire(), udp=udp))
                await arrived.wait()
                names.close()
            for answer in (waiting.result(), await names.answer(query().to_wire(), udp=udp)):
                assert dns.message.from_wire(answer.reply).rcode() == dns.rcode.SERVFAIL
                assert answer.outcome is not Outcome.OK
            assert len(server.asked) == 1

    asyncio.run(run())


def test_resolv_conf_is_followed(tmp_path):
    """By the labels only: port 53 of these addresses is nobody's, or at least not ours to answer on."""

    async def run():
        path = tmp_path / "resolv.conf"
        names = DnsService("forward", SyntheticPool(), str(path), "/nonexistent")
        for address in ("127.53.53.1", "127.53.53.2"):
            path.write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
            answer = await names.answer(query().to_wire(), udp=True)
            assert answer.upstream == f"{address}:53"

    asyncio.run(run())
