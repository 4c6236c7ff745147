"""The answers that need no waiting: names of our own, synthetic ones, the hosts file, refusals, and
garbage."""

from __future__ import annotations

from collections.abc import Callable

from netns_graft.flow import Outcome
from netns_graft.wire import ProtocolError
from netns_graft.wire import dns as wire

from .answer import Answer
from .hosts import HostsFile
from .synthetic import PoolExhausted, SyntheticPool, is_host_name

HOST_LOOPBACK_NAME = "host.containers.internal"

_TTL = 10  # seconds: short, for a graft's names end with it, and long enough to spare us the same question
_LOCALHOST = ("127.0.0.1", "::1")
_ADDRESS_TYPES = (wire.A, wire.AAAA, wire.ANY)
_TRANSFERS = (wire.AXFR, wire.IXFR)  # many messages to one question; no stub resolver asks for them


class LocalAnswers:
    """What one workload's questions are answered without asking anybody.

    ``learn(address, name)`` is told what the hosts file answered. ``allows`` is the policy's word on asking a
    name upstream and the rule that said so: in forward mode it comes before anything that the host knows.
    """

    def __init__(
        self,
        pool: SyntheticPool,
        *,
        forward: bool,
        hosts: HostsFile,
        allows: Callable[[str], tuple[bool, str]],
        learn: Callable[[str, str], None],
    ) -> None:
        self._pool = pool
        self._forward = forward
        self._hosts = hosts
        self._allows = allows
        self._learn = learn

    def consider(self, data: bytes, *, udp: bool) -> Answer | tuple[wire.Question, str]:
        """The answer to the message ``data``; or, to be forwarded, the question and the rule that allows
        it."""
        try:
            question = wire.parse_query(data)
        except ProtocolError as error:
            reply = wire.answer_error(data, wire.error_for(data))
            return Answer(reply, "", "", Outcome.REFUSED, str(error), None)
        answer = self._answer(question)
        if isinstance(answer, Answer) and answer.reply is not None and udp:
            answer.reply = wire.fit_udp(answer.reply, question)
        return answer

    def _answer(self, question: wire.Question) -> Answer | tuple[wire.Question, str]:
        name = question.name
        if question.qtype in _TRANSFERS:
            return coded(question, wire.NOTIMP, Outcome.REFUSED)
        if question.qclass == wire.IN:
            if name == "localhost" or name.endswith(".localhost"):
                return _found(question, wire.answer_addresses(question, _LOCALHOST, _TTL), None)
            if name == HOST_LOOPBACK_NAME:
                return self._synthetic(question)
        if self._forward:
            return self._answer_forward(question)
        if question.qclass != wire.IN:
            return coded(question, wire.REFUSED, Outcome.REFUSED)
        if name == ".":
            return _found(question, wire.answer_nodata(question), "synthetic")
        if name.endswith((".in-addr.arpa", ".ip6.arpa")) or not is_host_name(name):
            return coded(question, wire.NXDOMAIN, Outcome.OK, "synthetic")
        return self._synthetic(question)

    def _answer_forward(self, question: wire.Question) -> Answer | tuple[wire.Question, str]:
        """Policy first, then the hosts file, as libc does: a name that stands there is never asked for
        addresses of the other family. Other types of such a name are the resolvers' business."""
        allowed, rule = self._allows(question.name)
        if not allowed:
            answer = coded(question, wire.REFUSED, Outcome.DENIED, rule=rule)
            answer.allowed = False
            return answer
        if question.qclass != wire.IN:
            return question, rule
        if question.qtype in (wire.A, wire.AAAA):
            addresses = self._hosts.addresses_of(question.name)
            if addresses is not None:
                for known in addresses:
                    self._learn(known, question.name)
                return _found(question, wire.answer_addresses(question, addresses, _TTL), "hosts", rule)
        elif question.qtype == wire.PTR:
            address = wire.address_of_reverse(question.name)
            if address is not None and SyntheticPool.contains(address):  # our own, no resolver knows them
                return coded(question, wire.NXDOMAIN, Outcome.OK, "synthetic", rule)
            canonical = self._hosts.name_of(address) if address is not None else None
            if canonical is not None:
                return _found(question, wire.answer_names(question, [canonical], _TTL), "hosts", rule)
        return question, rule

    def _synthetic(self, question: wire.Question) -> Answer:
        """An address only for who asks for one: TXT or HTTPS questions use up none."""
        if question.qtype not in _ADDRESS_TYPES:
            return _found(question, wire.answer_nodata(question), "synthetic")
        try:
            addresses = self._pool.addresses_for(question.name)
        except PoolExhausted as error:
            answer = coded(question, wire.SERVFAIL, Outcome.UPSTREAM_FAILED, "synthetic")
            answer.error = str(error)
            return answer
        return _found(question, wire.answer_addresses(question, addresses, _TTL), "synthetic")


def coded(
    question: wire.Question, rcode: int, outcome: Outcome, upstream: str | None = None, rule: str = "default"
) -> Answer:
    """An answer that consists of an rcode, which is its error text too."""
    reply, text = wire.answer_error(question, rcode), wire.rcode_text(rcode)
    return Answer(reply, question.name, question.qtype_text, outcome, text, upstream, True, rule)


def _found(question: wire.Question, reply: bytes, upstream: str | None, rule: str = "default") -> Answer:
    return Answer(reply, question.name, question.qtype_text, Outcome.OK, None, upstream, True, rule)
