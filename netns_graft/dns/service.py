"""The names of one workload: every DNS question it asks comes in here.

Two modes. *synthetic*: each host name has an address of its own and nothing leaves the host, whatever is
asked; who may connect where is decided when a connection to that address comes. *forward*: the host's hosts
file, then the host's resolvers, for names that the policy allows to be asked; the addresses in the replies
are remembered, so that connections to them can be recorded by name.

In both, ``localhost`` is the workload's own loopback (RFC 6761), and ``host.containers.internal`` has a
synthetic address: a connection to it means the host's loopback, where a rule names it.

Invariant: whatever bytes a workload or a resolver sends, ``answer_now`` and ``answer`` return; and the time,
memory and descriptors that they take are bounded.

dnspython makes the DNS code proper (``answering``, ``resolvers``) cost 60 ms to import: it is loaded by
``prepare``, or else at the first question.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from netns_graft.flow import Outcome

from .answer import Answer
from .hosts import HostsFile
from .resolv_conf import ResolvConf
from .synthetic import SyntheticPool, is_host_name

if TYPE_CHECKING:
    from .answering import LocalAnswers
    from .by_proxy import Reach
    from .resolvers import HostResolvers

__all__ = ["Answer", "DnsService"]

_LEARNT = 16384  # addresses remembered from forwarded replies
_UNDER_WAY = 512  # questions waiting for a resolver; each may hold a descriptor


class DnsService:
    """Answers one workload's questions. ``resolvers``: the path of a resolv.conf, or what one would say.

    ``allows(name)`` gives the policy's word on asking a name upstream, and the rule that said so; only
    forward mode asks it, before anything else is looked at. ``reach`` leads to the resolvers, by TCP; None: they are
    asked from this host, as its libc would.
    """

    def __init__(
        self,
        mode: Literal["synthetic", "forward"],
        pool: SyntheticPool,
        resolvers: str | ResolvConf = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
        allows: Callable[[str], tuple[bool, str]] = lambda name: (True, "default"),
        *,
        reach: Reach | None = None,
        most_under_way: int = _UNDER_WAY,
        most_learnt: int = _LEARNT,
    ) -> None:
        self._forward = mode == "forward"
        self._pool = pool
        self._resolvers_source = resolvers
        self._reach = reach
        self._resolvers: HostResolvers | None = None
        self._hosts = HostsFile(hosts)
        self._allows = allows
        self._local: LocalAnswers | None = None
        self._most_under_way = most_under_way
        self._most_learnt = most_learnt
        self._under_way = 0
        self._closed = False
        self._learnt: OrderedDict[str, str] = OrderedDict()

    def prepare(self) -> None:
        """Loads what the first question needs: 60 ms that it then need not wait for."""
        self._local_answers()
        if self._forward:
            self._host_resolvers()

    def answer_now(self, data: bytes, *, udp: bool) -> Answer | None:
        """The answer to the message ``data`` where no waiting is needed; None: ``answer`` has to ask a
        resolver."""
        considered = self._local_answers().consider(data, udp=udp)
        return considered if isinstance(considered, Answer) else None

    async def answer(self, data: bytes, *, udp: bool) -> Answer:
        """The answer to ``data``, forwarded if need be. ``udp``: how it came, hence how it is forwarded and
        how long the reply may be."""
        from netns_graft.wire import dns as wire

        from .answering import coded

        considered = self._local_answers().consider(data, udp=udp)
        if isinstance(considered, Answer):
            return considered
        question, rule = considered
        if self._closed or self._under_way >= self._most_under_way:
            answer = coded(question, wire.SERVFAIL, Outcome.UPSTREAM_FAILED, rule=rule)
            answer.error = "the graft is gone" if self._closed else f"{self._under_way} questions under way"
            return answer
        self._under_way += 1
        try:
            resolved = await self._host_resolvers().ask(data, question, udp=udp)
        finally:
            self._under_way -= 1
        upstream = resolved.server or None
        if resolved.reply is None:
            answer = coded(question, wire.SERVFAIL, resolved.outcome, upstream, rule)
            answer.error = resolved.error
            return answer
        self._learn_reply(resolved.reply)
        reply = wire.fit_udp(resolved.reply, question) if udp else resolved.reply
        rcode = wire.rcode_of(reply)
        error = resolved.error or (wire.rcode_text(rcode) if rcode != wire.NOERROR else None)
        qtype, outcome = question.qtype_text, resolved.outcome
        return Answer(reply, question.name, qtype, outcome, error, upstream, True, rule)

    def name_of(self, address: str) -> tuple[str, str] | None:
        """(host, host_source) of a destination: "synthetic", or "dns" when a forwarded reply taught it."""
        name = self._pool.name_of(address)
        if name is not None:
            return name, "synthetic"
        name = self._learnt.get(address)
        if name is None:
            return None
        self._learnt.move_to_end(address)
        return name, "dns"

    def close(self) -> None:
        """Ends all questions under way; they are answered SERVFAIL, and so are later ones."""
        self._closed = True
        if self._resolvers is not None:
            self._resolvers.close()

    def _learn_reply(self, reply: bytes) -> None:
        from netns_graft.wire import ProtocolError
        from netns_graft.wire import dns as wire

        try:
            pairs = wire.addresses_in_reply(reply)
        except ProtocolError:
            return  # passed on as it is: the workload's own resolver library is the one to complain
        for name, address in pairs:
            self._learn(address, name)

    def _learn(self, address: str, name: str) -> None:
        """Remembers ``address`` as ``name``'s. Synthetic addresses are never learnt: their names are
        known."""
        if not is_host_name(name) or SyntheticPool.contains(address):
            return
        self._learnt[address] = name
        self._learnt.move_to_end(address)
        if len(self._learnt) > self._most_learnt:
            self._learnt.popitem(last=False)

    def _local_answers(self) -> LocalAnswers:
        if self._local is None:
            from .answering import LocalAnswers

            self._local = LocalAnswers(
                self._pool, forward=self._forward, hosts=self._hosts, allows=self._allows, learn=self._learn
            )
        return self._local

    def _host_resolvers(self) -> HostResolvers:
        if self._resolvers is None:
            from .resolvers import HostResolvers

            self._resolvers = HostResolvers(self._resolvers_source, self._reach)
        return self._resolvers
