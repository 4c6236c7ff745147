"""The upstreams of a workload: which one a flow takes, through which proxies, and what when one is dead.

An *upstream* is one ``--proxy``: ``direct`` or a chain of proxies. Several are tried in the order given. One
whose proxy fails is passed over by later flows for a second, then two, up to thirty; then a single flow tries
it again. When all others have failed too, one that is down is tried anyway: better slow than wrong.

What is the destination's own fault (refused, forbidden, no such host) ends a flow at once, for the next
upstream would find the same. See ``Blame``.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from netns_graft.dialling import tcp
from netns_graft.dialling.outcome import Blame, DialError, Dialled, Target, resolve_error
from netns_graft.dialling.place import is_name, literal
from netns_graft.dialling.resolver import Resolver
from netns_graft.dialling.url import DIRECT, Hop, Scheme
from netns_graft.errors import ConfigError
from netns_graft.flow import Outcome
from netns_graft.policy.names import HOST_NAME

HOST_LOOPBACK = ("127.0.0.1", "::1")

TIME_LIMIT = 30.0  # seconds for the connection to a proxy, and again for each handshake
RETRY_FIRST, RETRY_LAST = 1.0, 30.0  # seconds that a dead upstream is left alone: doubling from, up to
ADDRESSES_LIMIT = 4  # addresses of one name put before a proxy that takes no names, one after the other
DIRECT_LIMIT = 10  # addresses of one name tried when direct: as many sockets may be open for one flow
CACHE_TIME = 30.0  # seconds that the addresses of a proxy's own name are kept

Permits = Callable[[str], bool]


@dataclass(slots=True)
class Upstream:
    """One ``--proxy``: no hops is direct. The rest is its health; times are of the monotonic clock."""

    hops: tuple[Hop, ...]
    label: str = field(init=False)
    pause: float = 0.0  # seconds; 0 while it works
    down_since: float = 0.0
    retry_at: float = 0.0

    def __post_init__(self) -> None:
        self.label = ",".join(hop.label for hop in self.hops) or DIRECT

    @property
    def takes_names(self) -> bool:
        return bool(self.hops) and self.hops[-1].scheme.takes_names

    def worked(self) -> None:
        self.pause = 0.0

    def failed(self, began: float, now: float) -> None:
        """An attempt that began at ``began`` has failed by the proxy's fault."""
        if self.pause and began < self.down_since:
            return  # it began before we knew: no news
        self.pause = min(self.pause * 2, RETRY_LAST) if self.pause else RETRY_FIRST
        self.down_since = now
        self.retry_at = now + self.pause


def _prepare() -> None:
    """Load both ways of speaking with proxies: 18 ms, and only for who has a proxy."""
    from netns_graft.dialling import http_proxy, socks  # noqa: F401


class Upstreams:
    """All upstreams of a workload, in order of preference. ``close`` stops the threads that resolve names."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        resolver: Resolver | None = None,
        time_limit: float = TIME_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        shuffled: bool = False,
    ) -> None:
        self._upstreams = list(upstreams)
        self._shuffled = shuffled
        self._resolver = resolver or Resolver()
        self._time_limit = time_limit
        self._clock = clock
        self._proxy_addresses: dict[str, tuple[float, list[str]]] = {}
        self.is_direct = len(self._upstreams) == 1 and not self._upstreams[0].hops
        if any(upstream.hops for upstream in self._upstreams):
            _prepare()
        self.takes_names = all(upstream.takes_names for upstream in self._upstreams)

    def __repr__(self) -> str:
        return f"Upstreams({self.labels})"

    @property
    def labels(self) -> list[str]:
        """In order of preference, without credentials."""
        return [upstream.label for upstream in self._upstreams]

    async def dial(self, target: Target, *, permits: Callable[[str], bool]) -> Dialled:
        """Open a way to ``target``. Raises ``DialError``.

        ``permits`` says of an address that a name turned out to mean whether policy lets the flow go there; a
        literal ``target.address`` has been judged before and is not asked about.
        """
        host = _checked_host(target, permits)
        failures: list[DialError] = []
        for upstream in self._in_order():
            began = self._clock()
            try:
                dialled = await self._dial_by(upstream, host, target.port, permits)
            except DialError as error:
                error.upstream = upstream.label
                if error.blame is Blame.PROXY:
                    upstream.failed(began, self._clock())
                elif error.blame is Blame.TARGET:
                    if error.outcome is not Outcome.DENIED:  # which is our own word, and no proxy's
                        upstream.worked()
                    raise
                failures.append(error)
            else:
                upstream.worked()
                return dialled
        last = failures[-1]
        if len(failures) == 1:
            raise last
        text = "; ".join(str(failure) for failure in failures)
        summary = DialError(text, last.outcome, last.errno, last.blame)
        summary.upstream = last.upstream
        raise summary from last

    async def check(self) -> None:
        """Raise ``ConfigError`` when the name of a proxy that this host has to resolve has no address."""
        for upstream in self._upstreams:
            for position, hop in enumerate(upstream.hops):
                if position and upstream.hops[position - 1].scheme.takes_names:
                    continue
                try:
                    await self._resolve_proxy(hop)
                except OSError as error:
                    raise ConfigError(
                        f"cannot resolve the proxy {hop.host!r}: {error.strerror or 'no answer in time'}",
                        where="--proxy",
                    ) from error

    def close(self) -> None:
        self._resolver.close()

    def _in_order(self) -> Iterator[Upstream]:
        """Those that work, by preference, then those that are down. Whoever retries one claims that retry."""
        left_alone = []
        upstreams = self._upstreams
        if self._shuffled:
            upstreams = random.sample(upstreams, len(upstreams))
        for upstream in upstreams:
            now = self._clock()
            if upstream.pause and now < upstream.retry_at:
                left_alone.append(upstream)
                continue
            if upstream.pause:
                upstream.retry_at = now + upstream.pause
            yield upstream
        yield from left_alone

    async def _dial_by(self, upstream: Upstream, host: str, port: int, permits: Permits) -> Dialled:
        named = literal(host) is None
        if upstream.takes_names or (upstream.hops and not named):
            sock, early = await self._reach(upstream.hops, host, port)
            return Dialled(sock, upstream.label, None, early)
        addresses = await self._resolve_target(host, permits, direct=not upstream.hops) if named else [host]
        if not upstream.hops:
            # With nothing to fall back on the kernel's own patience is the limit, as it is without us.
            limit = self._time_limit if len(self._upstreams) > 1 else None
            sock, address = await tcp.connect_any(addresses[:DIRECT_LIMIT], port, time_limit=limit)
            return Dialled(sock, upstream.label, address if named else None)
        sock, address, early = await self._reach_any(upstream.hops, addresses, port)
        return Dialled(sock, upstream.label, address, early)

    async def _resolve_target(self, host: str, permits: Permits, *, direct: bool) -> list[str]:
        if direct and host == HOST_NAME:
            addresses = list(HOST_LOOPBACK)  # nobody but us says what it means
        else:
            try:
                addresses = await self._resolver.resolve(host)
            except OSError as error:
                raise resolve_error(error, host) from error
        permitted = [address for address in addresses if permits(address)]
        if not permitted:
            text = f"{host} resolves to {', '.join(addresses[:ADDRESSES_LIMIT])}, which is not permitted"
            raise DialError(text, Outcome.DENIED, errno.EACCES, Blame.TARGET)
        return permitted

    async def _reach(self, hops: tuple[Hop, ...], host: str, port: int) -> tuple[socket.socket, bytes]:
        """A connection to ``host`` through ``hops``; what the last one refuses is the destination's fault."""
        hop = hops[-1]
        sock = await self._reach_hop(hops)
        try:
            from netns_graft.dialling import http_proxy, socks

            if hop.scheme is Scheme.HTTP:
                return await http_proxy.handshake(sock, hop, host, port, time_limit=self._time_limit)
            return await socks.handshake(sock, hop, host, port, time_limit=self._time_limit), b""
        except DialError as error:
            raise DialError(f"{hop.label}: {error}", error.outcome, error.errno, error.blame) from error

    async def _reach_any(
        self, hops: tuple[Hop, ...], addresses: Sequence[str], port: int
    ) -> tuple[socket.socket, str, bytes]:
        """As ``_reach``, to the first of ``addresses`` that the last proxy can reach; says which."""
        *others, last = addresses[:ADDRESSES_LIMIT]
        for address in others:
            try:
                sock, early = await self._reach(hops, address, port)
                return sock, address, early
            except DialError as error:
                if error.blame is Blame.PROXY:
                    raise
        sock, early = await self._reach(hops, last, port)
        return sock, last, early

    async def _reach_hop(self, hops: tuple[Hop, ...]) -> socket.socket:
        """A connection to the last of ``hops`` through those before it; whatever fails is a proxy's fault."""
        hop, before = hops[-1], hops[:-1]
        try:
            if before and before[-1].scheme.takes_names:
                sock, early = await self._reach(before, hop.host, hop.port)
            else:
                addresses = await self._resolve_proxy(hop)
                if not before:
                    return await tcp.connect_proxy(addresses, hop.port, time_limit=self._time_limit)
                sock, _, early = await self._reach_any(before, addresses, hop.port)
        except OSError as error:
            failure = resolve_error(error, hop.host)
        except DialError as error:
            failure = error
        else:
            if not early:
                return sock
            sock.close()  # proxies do not speak first
            failure = DialError("it speaks before it is asked", Outcome.UPSTREAM_FAILED)
        self._proxy_addresses.pop(hop.host, None)
        text = f"{hop.label} not reached: {failure}" if before else f"{hop.label}: {failure}"
        auth = failure.outcome is Outcome.UPSTREAM_AUTH
        outcome = Outcome.UPSTREAM_AUTH if auth else Outcome.UPSTREAM_FAILED
        raise DialError(text, outcome, failure.errno, Blame.PROXY) from failure

    async def _resolve_proxy(self, hop: Hop) -> list[str]:
        """The addresses of a proxy, kept for a while so that not every flow asks anew. Raises ``OSError``."""
        expires, addresses = self._proxy_addresses.get(hop.host, (0.0, []))
        if not addresses or expires <= self._clock():
            addresses = await self._resolver.resolve(hop.host)
            self._proxy_addresses[hop.host] = (self._clock() + CACHE_TIME, addresses)
        return addresses


def _checked_host(target: Target, permits: Permits) -> str:
    """What to ask for: a canonical address or a name; an address disguised as a name is judged as that."""
    if target.address is not None:
        return literal(target.address) or target.address
    host = target.host or ""
    address = literal(host)
    # RFC 6761: these are the loopback and nothing else, also where a proxy resolves them.
    loopback = host == "localhost" or host.endswith(".localhost")
    meant = [address] if address else list(HOST_LOOPBACK) if loopback else []
    if meant and not any(permits(address) for address in meant):
        text = f"{host} means {meant[0]}, which is not permitted"
        raise DialError(text, Outcome.DENIED, errno.EACCES, Blame.TARGET)
    if address is None and not is_name(host):
        raise DialError(f"not a host name: {host[:80]!r}", Outcome.UNREACHABLE, errno.EHOSTUNREACH)
    return address or host
