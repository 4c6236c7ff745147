"""Which of several ``--proxy`` a flow may take, and in which order: ``--select-proxy-mode``, with graftcp's words.

An upstream is what its last hop is, for that one is asked for the destination. graftcp has one SOCKS5 and one HTTP
proxy; here there may be any number of each, in chains too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from netns_graft.dialling.credentials import Credentials
from netns_graft.dialling.upstreams import TIME_LIMIT, Upstream, Upstreams
from netns_graft.dialling.url import DIRECT, Scheme, parse_chain
from netns_graft.errors import UsageError

SelectMode = Literal["auto", "random", "only_http_proxy", "only_socks5", "direct"]

_SOCKS5 = frozenset({Scheme.SOCKS5, Scheme.SOCKS5H})


def parse_upstreams(
    urls: Sequence[str],
    credentials: Credentials | None = None,
    *,
    select_mode: SelectMode | None = None,
    time_limit: float = TIME_LIMIT,
) -> Upstreams:
    """The upstreams of these ``--proxy`` values, in order; none: direct. Raises ``ConfigError``, status 2."""
    known = credentials or Credentials()
    upstreams = select([Upstream(parse_chain(url, known)) for url in urls or (DIRECT,)], select_mode)
    return Upstreams(upstreams, time_limit=time_limit, shuffled=select_mode == "random")


def select(upstreams: Sequence[Upstream], mode: SelectMode | None) -> list[Upstream]:
    """Those of ``upstreams`` that ``mode`` leaves, by preference. None: as they are.

    ``auto`` is SOCKS5, then whatever else, then direct, so that a flow leaves directly when no proxy works: graftcp's
    meaning of it. ``UsageError`` when none is left, or there is nothing to choose from.
    """
    if mode is None:
        return list(upstreams)
    if mode == "direct":
        return [Upstream(())]
    proxies = [upstream for upstream in upstreams if upstream.hops]
    if not proxies:
        raise UsageError(f"--select-proxy-mode {mode}: there is no proxy to select", hint="give a --proxy")
    if mode == "auto":
        return [*sorted(proxies, key=lambda upstream: not _is_socks5(upstream)), Upstream(())]
    if mode == "random":
        return list(upstreams)
    left = [upstream for upstream in proxies if (_is_socks5 if mode == "only_socks5" else _is_http)(upstream)]
    if not left:
        kind = "socks5:// or socks5h://" if mode == "only_socks5" else "http://"
        raise UsageError(f"--select-proxy-mode {mode}: no --proxy is of that kind", hint=f"give one with {kind}")
    return left


def _is_socks5(upstream: Upstream) -> bool:
    return upstream.hops[-1].scheme in _SOCKS5


def _is_http(upstream: Upstream) -> bool:
    return upstream.hops[-1].scheme is Scheme.HTTP
