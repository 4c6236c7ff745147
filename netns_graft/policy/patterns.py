"""Quick-rule patterns: ``host[:port]``, ``*.host[:port]``, ``cidr[:port]``, ``[v6cidr]:port``, ``:port``.

A port may be a range, ``:8000-8100``. A pattern is refused rather than guessed at: what looks like a broken
address (``10.0.0``, ``300.1.1.1``) is an error and never a host name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from netns_graft.policy.addresses import Network, parse_network
from netns_graft.policy.names import is_host_name, to_a_labels

ANY_PORT = (0, 65535)


@dataclass(slots=True, frozen=True)
class Pattern:
    """What a flow must look like to match. At most one of ``host`` and ``network`` is set; neither: any
    destination.

    ``host`` is a normal name; with a leading dot (``.x.org``) it means every name under x.org and not x.org
    itself.
    """

    host: str | None
    network: Network | None
    first_port: int
    last_port: int

    @property
    def any_port(self) -> bool:
        return self.first_port <= 1 and self.last_port == 65535


class PatternError(ValueError):
    """This text is no pattern; ``hint`` says what was probably meant."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def parse_pattern(text: str) -> Pattern:
    """Text to pattern. ``PatternError`` when it is none."""
    if not text:
        raise PatternError("the pattern is empty", "write host, host:port, a CIDR or :port")
    if any(char.isspace() for char in text):
        raise PatternError(f"{text!r} has white space in it", "give one pattern to each option")
    if "://" in text:
        raise PatternError(f"{text!r} is a URL", f"write host:port: {_host_port_of_url(text)}")
    where, ports = _split(text)
    first, last = _parse_ports(text, ports) if ports is not None else ANY_PORT
    if not where:
        return Pattern(None, None, first, last)
    if "/" in where or ":" in where or _looks_like_ipv4(where):
        return Pattern(None, _parse_network(where), first, last)
    return Pattern(_parse_host(where), None, first, last)


def _split(text: str) -> tuple[str, str | None]:
    """(destination, ports or None). Two colons without brackets can only be IPv6, which then has no port."""
    if text.startswith("["):
        inner, closed, rest = text[1:].partition("]")
        if not closed:
            raise PatternError(f"{text!r} has no closing bracket")
        if ":" not in inner:
            raise PatternError(f"{text!r}: only IPv6 goes in brackets")
        if not rest:
            return inner, None
        if not rest.startswith(":"):
            hint = f"write [{inner}{rest.partition(':')[0]}]" if rest.startswith("/") else None
            raise PatternError(f"{text!r} goes on after the bracket with {rest!r}", hint)
        return inner, rest[1:]
    if text.count(":") > 1:
        return text, None
    where, colon, ports = text.partition(":")
    return where, ports if colon else None


def _parse_ports(text: str, ports: str) -> tuple[int, int]:
    first, dash, last = ports.partition("-")
    numbers = [first, last] if dash else [first]
    if not all(re.fullmatch("[0-9]{1,5}", number) for number in numbers):
        raise PatternError(f"{text!r}: {ports!r} is no port", "write a number, or a range like 8000-8100")
    low, high = int(numbers[0]), int(numbers[-1])
    if not (1 <= low <= 65535 and 1 <= high <= 65535):
        raise PatternError(f"{text!r}: a port is between 1 and 65535")
    if low > high:
        raise PatternError(f"{text!r}: the range ends before it starts", f"write {high}-{low}")
    return low, high


def _looks_like_ipv4(where: str) -> bool:
    """The last label is a number: an address, whole or broken (``300.1.1.1``, ``127.1``, ``0x7f.1``)."""
    label = where.rstrip(".").rpartition(".")[2].lower()
    return re.fullmatch("[0-9]+|0x[0-9a-f]*", label) is not None


def _parse_network(where: str) -> Network:
    address, slash, prefix = where.partition("/")
    if "%" in where:
        raise PatternError(f"{where!r} has a zone", f"write {where.partition('%')[0]}")
    if slash and not (_looks_like_ipv4(address) or ":" in address):
        raise PatternError(f"{where!r} is neither a host nor a CIDR", "write the host alone, without a path")
    if slash and not re.fullmatch("[0-9]{1,3}", prefix):  # ipaddress would take masks as well
        length, colon, port = prefix.partition(":")
        hint = f"write [{address}/{length}]:{port}" if colon and ":" in address else None
        raise PatternError(f"{where!r}: {prefix!r} is no prefix length", hint)
    try:
        return parse_network(where)
    except ValueError:
        pass
    try:
        right = ipaddress.ip_network(where, strict=False)
    except ValueError:
        kind = "IPv6" if ":" in address else "IPv4"
        raise PatternError(f"{where!r} is no {kind} {'network' if slash else 'address'}") from None
    hint = f"write {right}, or {address} for the one address"
    raise PatternError(f"{where!r} has bits set after its prefix", hint)


def _parse_host(where: str) -> str:
    wild = where.startswith("*.")
    rest = where[2:] if wild else where
    if where == "*":
        raise PatternError("'*' alone matches nothing", "write :PORT for any destination, or use --default")
    if "*" in rest:
        raise PatternError(f"{where!r}: a '*' stands only at the start, before a dot", "write *.example.org")
    try:
        name = to_a_labels(rest)
    except ValueError as error:
        raise PatternError(f"{where!r}: {error}", "write the name as DNS has it, xn--…") from None
    if not is_host_name(name):
        raise PatternError(f"{where!r} is no host name")
    return f".{name}" if wild else name


def _host_port_of_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if re.search(r":[0-9]+\Z", authority):
        return authority
    port = {"http": 80, "https": 443, "ssh": 22, "git": 9418, "ftp": 21}.get(scheme.lower())
    return f"{authority}:{port}" if port else authority
