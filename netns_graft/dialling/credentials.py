"""Users and passwords for proxies that do not stand in the URL: from the environment or from a file.

A URL on a command line is for everybody to read in ``ps``; these two are not. Nothing here ever shows a
password: not ``repr()``, not an error. Which one is taken, the nearest first: the URL, the file's line for
that very proxy, the environment, the file's line for every proxy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from netns_graft.dialling.place import canonical_host
from netns_graft.errors import ConfigError

USERNAME_VARIABLE = "NETNS_GRAFT_PROXY_USERNAME"
PASSWORD_VARIABLE = "NETNS_GRAFT_PROXY_PASSWORD"

_HOP_LINE = re.compile(r"(?P<host>\[[^\]\s]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})[ \t]+(?P<login>.+)")


@dataclass(slots=True, frozen=True)
class Login:
    """A user and a password; either may be missing, for a URL may bring the other one."""

    username: str | None = field(repr=False)
    password: str | None = field(repr=False)


@dataclass(slots=True, frozen=True)
class Credentials:
    """Logins by proxy (``hops``, keyed by canonical host and port) and one for all others (``default``)."""

    default: Login | None = None
    hops: Mapping[tuple[str, int], Login] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Credentials:
        """The login that the two variables give; an empty variable counts as unset."""
        username, password = environ.get(USERNAME_VARIABLE) or None, environ.get(PASSWORD_VARIABLE) or None
        return cls(Login(username, password)) if username or password else cls()

    @classmethod
    def from_file(cls, path: str) -> Credentials:
        """Lines of ``user:password`` (one, for all proxies) and ``HOST:PORT user:password``; ``#`` comments.

        The password is everything to the end of the line, as it stands. Raises ``ConfigError`` with
        "FILE:LINE".
        """
        try:
            with open(path, encoding="utf-8-sig") as file:
                lines = file.read().split("\n")
        except OSError as error:
            raise ConfigError(f"cannot read the proxy credentials: {error.strerror}", where=path) from error
        except UnicodeDecodeError:  # its text quotes the bytes, so it is not chained either
            raise ConfigError("the proxy credentials are not UTF-8 text", where=path) from None
        default: Login | None = None
        hops: dict[tuple[str, int], Login] = {}
        for number, line in enumerate(lines, 1):
            text = line.removesuffix("\r").lstrip(" \t")
            if not text or text.startswith("#"):
                continue
            place, login = _parse_line(text, f"{path}:{number}")
            if (default is not None) if place is None else (place in hops):
                raise ConfigError("a second line for the same proxy", where=f"{path}:{number}")
            if place is None:
                default = login
            else:
                hops[place] = login
        if default is None and not hops:
            raise ConfigError("there are no proxy credentials in it", where=path, hint="write a line user:password")
        return cls(default, hops)

    def or_else(self, other: Credentials) -> Credentials:
        """These, then those of ``other``; a login for one proxy goes before one for all, whoever has it."""
        return Credentials(self.default or other.default, {**other.hops, **self.hops})

    def look_up(self, host: str, port: int, username: str | None = None) -> Login | None:
        """Login of the proxy at ``host`` (canonical) and ``port``; with ``username`` that user's only."""
        for login in (self.hops.get((host, port)), self.default):
            if login is None:
                continue
            if username is None:
                if login.username is not None:
                    return login
            elif login.username in (None, username) and login.password is not None:
                return Login(username, login.password)
        return None


def _parse_line(text: str, where: str) -> tuple[tuple[str, int] | None, Login]:
    hint = "write 'user:password', or 'HOST:PORT user:password' for one proxy"
    match = _HOP_LINE.fullmatch(text)
    place = None
    if match:
        text = match["login"]
        port = int(match["port"])
        try:
            place = (canonical_host(match["host"]), port)
        except ValueError:
            raise ConfigError("this is no HOST:PORT", where=where, hint=hint) from None
        if not 1 <= port <= 65535:
            raise ConfigError("the port is not a number from 1 to 65535", where=where, hint=hint)
    username, colon, password = text.partition(":")
    if not colon or not username:
        raise ConfigError("neither a user and a password nor a comment", where=where, hint=hint)
    return place, Login(username, password)
