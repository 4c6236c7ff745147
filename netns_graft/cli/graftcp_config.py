"""graftcp's configuration file, read as options of ours: ``--graftcp-config``.

Its form (graftcp 0.8's example-graftcp.conf): ``key = value`` lines, keys in any case, ``#`` comments, the last of two
equal keys counts. What an option on the command line says goes before what the file says. The keys of graftcp 0.7's
daemon, which 0.8 has dropped, are still known.

Where we are stricter: a key or value that is none is an error with file and line, while graftcp passes over it; and
without ``select_proxy_mode`` no flow goes directly when its proxies fail, while graftcp's default does that. No value
is ever shown: it may be a password, or stand where one was meant to.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import quote

from netns_graft.errors import ConfigError
from netns_graft.options import SELECT_MODES

SOCKS5_DEFAULT, DNS_DEFAULT = "127.0.0.1:1080", "1.1.1.1:53"  # graftcp's, where its file says nothing
_OPTION = "--graftcp-config"
_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}

# Every spelling of a key, in lower case, and what it is to us.
_KEYS = {
    **{key: key for key in ("socks5", "socks5_username", "socks5_password", "http_proxy", "select_proxy_mode")},
    **dict.fromkeys(("blackip_file_path", "blackip-file"), "direct_file"),
    **dict.fromkeys(("whiteip_file_path", "whiteip-file"), "proxy_file"),
    "username": "user",
    "ignore_local": "ignore_local",
    **dict.fromkeys(("not_ignore_local", "not-ignore-local"), "not_ignore_local"),
    **dict.fromkeys(("dns_proxy", "enable_dns", "enable-dns"), "dns_proxy"),
    **dict.fromkeys(("dns_server", "dns-server"), "dns_server"),
    **dict.fromkeys(("udp_proxy", "enable_udp", "enable-udp"), "udp_proxy"),
    # 0.7's daemon, its pipe and its log: there is no such thing.
    **dict.fromkeys(("listen", "local_addr", "local_port", "pipepath", "loglevel"), "nothing"),
    **dict.fromkeys(("logfile", "use_syslog"), "log"),
}
_BOOLEAN_KEYS = frozenset({"ignore_local", "not_ignore_local", "dns_proxy", "udp_proxy"})


@dataclass(slots=True)
class GraftcpConfig:
    """What the file says: ``values`` by our names of the keys, and the line on which each stands."""

    file: str
    values: dict[str, str] = field(default_factory=dict, repr=False)  # a password
    lines: dict[str, int] = field(default_factory=dict)

    def words(self, given: Collection[str], *, traces: bool) -> tuple[list[str], list[str]]:
        """(options of ours, notes for the user). ``given``: the names of the options that the command line has, which
        count for more; ``traces``: it says ``--mode ptrace``.
        """
        words: list[str] = []
        notes: list[str] = []
        if "--proxy" not in given:
            words += [f"--proxy={url}" for url in self._proxies()]
        for option in ("--select-proxy-mode", "--direct-file", "--proxy-file", "--user"):
            value = self.values.get(option.removeprefix("--").replace("-", "_"))
            if value and option not in given:
                words.append(f"{option}={value}")
        if self._is("dns_proxy") and not {"--dns", "--dns-server"} & set(given):
            words += ["--dns=forward", f"--dns-server={self.values.get('dns_server') or DNS_DEFAULT}"]
        if self._says_not_ignore_local():
            if traces:
                words.append("--not-ignore-local")
            else:
                key = "not_ignore_local" if "not_ignore_local" in self.lines else "ignore_local"
                notes.append(self._note(key, "local addresses are not left alone: that is for --mode ptrace"))
        if self._is("udp_proxy"):
            notes.append(self._note("udp_proxy", "UDP other than DNS is closed"))
        if self.values.get("log") and self._is("log", default=True):
            notes.append(self._note("log", "nothing is logged there; --flows FILE records what is contacted"))
        return words, notes

    def _proxies(self) -> list[str]:
        """URLs, in the order in which graftcp's ``auto`` tries them."""
        urls = []
        if place := self.values.get("socks5", SOCKS5_DEFAULT):
            user = self.values.get("socks5_username")
            password = self.values.get("socks5_password")
            login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "") if user else ""
            urls.append(f"socks5://{login}@{place}" if login else f"socks5://{place}")
        if http := self.values.get("http_proxy"):
            urls.append(f"http://{http}")
        if not urls and self.values.get("select_proxy_mode") != "direct":
            # graftcp would go directly here, without a word.
            hint = "write select_proxy_mode = direct, or give a --proxy"
            raise _wrong("socks5 is empty and there is no http_proxy", self.file, hint)
        return urls

    def _says_not_ignore_local(self) -> bool:
        """Two keys for one thing: the later counts."""
        if self.lines.get("not_ignore_local", 0) > self.lines.get("ignore_local", 0):
            return self._is("not_ignore_local")
        return "ignore_local" in self.values and not self._is("ignore_local")

    def _is(self, key: str, *, default: bool = False) -> bool:
        return _BOOLEANS.get(self.values.get(key, "").lower(), default)

    def _note(self, key: str, text: str) -> str:
        return f"{self.file}:{self.lines[key]}: {text}"


def read_graftcp_config(path: str) -> GraftcpConfig:
    """``ConfigError`` for a file that cannot be read, and with "FILE:LINE" for a line that cannot be used."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return parse_graftcp_config(file.read(), path)
    except OSError as error:
        raise _wrong(f"cannot read {path!r}: {error.strerror}", _OPTION) from None
    except UnicodeDecodeError:  # its text quotes the bytes
        raise _wrong(f"{path!r} is no UTF-8 text", _OPTION) from None


def parse_graftcp_config(text: str, file: str) -> GraftcpConfig:
    config = GraftcpConfig(file)
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{file}:{number}"
        word, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not re.fullmatch("[A-Za-z0-9_-]+", word):
            raise _wrong("this is no line of the form key = value", where)
        key = _KEYS.get(word.lower())
        if key is None:
            raise _wrong(f"graftcp has no key {word!r}", where, _nearest(word.lower()))
        _check(key, word, value, where)
        config.values[key], config.lines[key] = value, number
    if config.values.get("socks5_password") and not config.values.get("socks5_username"):
        raise _wrong("socks5_password without a socks5_username", f"{file}:{config.lines['socks5_password']}")
    return config


def _check(key: str, word: str, value: str, where: str) -> None:
    if key in _BOOLEAN_KEYS and value.lower() not in _BOOLEANS:
        raise _wrong(f"{word} is neither true nor false", where)
    if key == "select_proxy_mode" and value not in SELECT_MODES:
        raise _wrong(f"{word} is not one of {', '.join(SELECT_MODES)}", where)
    if key in ("socks5", "http_proxy") and value and not _is_place(value):
        raise _wrong(f"{word} is not of the form HOST:PORT", where, f"as in {word} = {SOCKS5_DEFAULT}")


def _is_place(value: str) -> bool:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:@/\[\],]+):([0-9]{1,5})", value)
    return match is not None and 1 <= int(match[1]) <= 65535


def _nearest(word: str) -> str | None:
    import difflib

    near = difflib.get_close_matches(word, _KEYS, n=1)
    return f"did you mean {near[0]}?" if near else None


def _wrong(message: str, where: str, hint: str | None = None) -> ConfigError:
    error = ConfigError(message, where=where, hint=hint)
    error.status = 2
    return error
