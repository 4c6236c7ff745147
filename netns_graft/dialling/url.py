"""What ``--proxy`` may say: ``direct``, or proxies joined by commas, each with its credentials found.

Errors show the URL with user and password masked, and never a piece of it on its own: where a password holds
a raw comma or slash, any piece may be a part of the password.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote

from netns_graft.dialling.credentials import PASSWORD_VARIABLE, Credentials, Login
from netns_graft.dialling.place import canonical_host, host_port
from netns_graft.errors import ConfigError

DIRECT = "direct"
SOCKS_LOGIN_LIMIT = 255  # bytes: a length in one byte (RFC 1929)
HTTP_LOGIN_LIMIT = 4096  # bytes: what servers take in one header line
_HINT_URL = "known are direct, socks5://, socks5h://, socks4a:// and http://, as in socks5h://127.0.0.1:1080"
_HINT_ENCODE = "in a user name or password write '/' as %2F, '?' as %3F, '#' as %23, '@' as %40, ',' as %2C"


class Scheme(StrEnum):
    """The kinds of proxy. ``socks5`` gets addresses that we resolved; the others get names as names."""

    SOCKS5 = "socks5"
    SOCKS5H = "socks5h"
    SOCKS4A = "socks4a"
    HTTP = "http"

    @property
    def takes_names(self) -> bool:
        return self is not Scheme.SOCKS5

    @property
    def default_port(self) -> int:
        """1080 is registered for SOCKS; 8080 is the "HTTP alternate" that proxies use most."""
        return 8080 if self is Scheme.HTTP else 1080


@dataclass(slots=True, frozen=True)
class Hop:
    """One proxy. ``host`` is canonical, without brackets."""

    scheme: Scheme
    host: str
    port: int
    login: Login | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return f"{self.scheme}://{host_port(self.host, self.port)}"

    def scrub(self, text: str) -> str:
        """``text`` of this proxy's, fit for a record even if it echoes our password."""
        password = self.login.password if self.login else None
        return text.replace(password, "***") if password else text


def redact(url: str) -> str:
    """``url``, or a chain, fit to be shown: what may be a credential is masked, however wrong it is."""
    known = "|".join([DIRECT, *(f"{scheme}://" for scheme in Scheme)])
    pieces = re.split(f",(?={known})", url, flags=re.IGNORECASE)
    return ",".join(_redact_hop(piece, "@" in "".join(pieces[n:])) for n, piece in enumerate(pieces, 1))


def _redact_hop(piece: str, more: bool) -> str:
    """``more``: an "@" follows in a later piece, so this one may be the torn off beginning of a password."""
    head, separator, rest = piece.partition("://") if "://" in piece else ("", "", piece)
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    elif more and not re.fullmatch(r"(\[[^\]]*\]|[^:/?#\[\]]*)(:[0-9]*)?/?", rest):
        rest = "***"
    return head + separator + re.sub(r"([?#]).+", r"\1***", rest, flags=re.DOTALL)


def parse_chain(value: str, credentials: Credentials) -> tuple[Hop, ...]:
    """The proxies of one ``--proxy``, nearest first; none: ``direct``. Raises ``ConfigError``, status 2."""
    pieces = [piece.strip() for piece in value.split(",")]
    if pieces == [DIRECT]:
        return ()
    if DIRECT in pieces:
        raise unusable("'direct' cannot be a part of a chain", value)
    hops = tuple(_parse_hop(piece, value, credentials) for piece in pieces)
    for hop, following in itertools.pairwise(hops):
        if hop.scheme is Scheme.SOCKS4A and ":" in following.host:
            raise unusable("SOCKS4a cannot reach a proxy by its IPv6 address", value)
    return hops


def unusable(problem: str, value: str, hint: str | None = None) -> ConfigError:
    """A ``--proxy`` that cannot be used: wrong usage, hence exit status 2."""
    error = ConfigError(f"{problem}: {redact(value)!r}", where="--proxy", hint=hint)
    error.status = 2
    return error


def _parse_hop(piece: str, value: str, credentials: Credentials) -> Hop:
    name, separator, rest = piece.partition("://")
    if not separator:
        hint = _HINT_ENCODE if "@" in value else _HINT_URL
        raise unusable("not a proxy URL" if piece else "an empty proxy URL", value, hint)
    try:
        scheme = Scheme(name.lower())
    except ValueError:
        raise unusable("unknown kind of proxy", value, _HINT_URL) from None
    end = re.search(r"[/?#]|$", rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in tail:
        raise unusable("a user name or password that is not percent-encoded", value, _HINT_ENCODE)
    if tail not in ("", "/"):
        raise unusable("a proxy URL ends after the port", value)
    userinfo, _, place = authority.rpartition("@")
    host, port = _parse_place(place, scheme, value)
    return Hop(scheme, host, port, _find_login(userinfo, scheme, host, port, credentials, value))


def _parse_place(place: str, scheme: Scheme, value: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?P<port>:.*)?", place)
    if match is None or (match["port"] or "").count(":") > 1:
        raise unusable("an IPv6 address stands in brackets, as in socks5://[::1]:1080", value)
    if not match["host"]:
        raise unusable("no host in the proxy URL", value)
    try:
        host = canonical_host(match["host"])
    except ipaddress.AddressValueError:
        raise unusable("no IPv6 address between the brackets", value) from None
    except ValueError:
        raise unusable("not a host name or an address", value) from None
    if match["port"] is None:
        return host, scheme.default_port
    digits = match["port"][1:]
    if not re.fullmatch("[0-9]{1,5}", digits) or not 1 <= int(digits) <= 65535:
        raise unusable("the port is not a number from 1 to 65535", value)
    return host, int(digits)


def _find_login(
    userinfo: str, scheme: Scheme, host: str, port: int, credentials: Credentials, value: str
) -> Login | None:
    """The URL's own user and password, completed by ``credentials``, checked against the protocol."""
    raw_username, colon, raw_password = userinfo.partition(":")
    try:
        username = unquote(raw_username, errors="strict")
        password = unquote(raw_password, errors="strict") if colon else None
    except UnicodeDecodeError:
        raise unusable("the user name or password is not UTF-8 when percent-decoded", value) from None
    if not username and password:
        raise unusable("a password without a user name", value)
    if scheme is Scheme.SOCKS4A:
        if password:
            raise unusable("SOCKS4a knows a user name but no password", value)
        known = credentials.look_up(host, port)
        login = Login(username or (known.username if known else None), None)
        return _checked(login, scheme, value) if login.username else None
    if not username:
        login_or_none = credentials.look_up(host, port)
        return _checked(login_or_none, scheme, value) if login_or_none else None
    if password is None:
        found = credentials.look_up(host, port, username)
        password = found.password if found else None
    return _checked(Login(username, password), scheme, value)


def _checked(login: Login, scheme: Scheme, value: str) -> Login:
    username, password = login.username or "", login.password
    if scheme is not Scheme.SOCKS4A and password is None:
        hint = f"put it into ${PASSWORD_VARIABLE} or into a file for --proxy-credentials"
        raise unusable("a user name but no password", value, hint)
    if scheme is Scheme.HTTP:
        if ":" in username:
            raise unusable("a user name with a colon cannot be used with HTTP", value)
        limit = HTTP_LOGIN_LIMIT
    else:
        if not (username + (password or "")).isascii():
            raise unusable("a user name or password that is not ASCII cannot be used with SOCKS", value)
        if scheme is Scheme.SOCKS4A and "\0" in username:
            raise unusable("a zero byte in the user name cannot be used with SOCKS4a", value)
        if password == "":
            raise unusable("an empty password cannot be used with SOCKS5", value)
        limit = SOCKS_LOGIN_LIMIT
    try:
        longest = max(len(username.encode()), len((password or "").encode()))
    except UnicodeEncodeError:  # bytes of argv or the environment that are no text
        raise unusable("a user name or password that is not UTF-8", value) from None
    if longest > limit:
        raise unusable(f"a user name or password of more than {limit} bytes", value)
    return login
