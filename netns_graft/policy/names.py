"""Host names: what counts as one, and the few that stand for a protected place.

Names in requests come from foreign bytes (DNS questions, SNI, ``Host:``) and may go on to a proxy, which
resolves them by its own means. ``127.1``, ``0x7f000001``, ``2130706433`` or ``::1`` asked for *as names*
would reach the proxy's loopback behind the back of every CIDR rule, so a name that a resolver could read as
an address is no name.
"""

from __future__ import annotations

import re

# What podman calls the host, and the only name that can open the host's own addresses.
HOST_NAME = "host.containers.internal"

# RFC 6761 section 6.3 gives localhost to the loopback; the others are Debian's and Red Hat's /etc/hosts.
_LOOPBACK_NAMES = frozenset(
    (
        "localhost",
        "localhost.localdomain",
        "localhost6",
        "localhost6.localdomain6",
        "ip6-localhost",
        "ip6-loopback",
    )
)

# A last label that is a number in any base inet_aton(3) knows makes the whole thing an address to some
# resolver; the URL standard draws the same line ("ends in a number").
_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*+(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]{1,63}")
_LONGEST = 253

# IDNA 2003, which the standard library speaks, maps these to something else; IDNA 2008 keeps them. Same
# spelling, two different domains: refuse to choose.
_DEVIATIONS = frozenset("ßς\u200c\u200d")


def normal(name: str) -> str:
    """The form in which names are compared: lower case, without the root's dot."""
    if name.isascii():  # lower() makes ASCII of the Kelvin sign, and of no name a different one
        name = name.lower()
    return name[:-1] if name.endswith(".") else name


def is_host_name(name: str) -> bool:
    """Whether a normal name is one that no resolver reads as an address. Underscores are fine."""
    return len(name) <= _LONGEST and _HOST.fullmatch(name) is not None


def means_loopback(name: str) -> bool:
    """Whether a normal name stands for the loopback of whoever resolves it."""
    return name in _LOOPBACK_NAMES or name.endswith(".localhost")


def to_a_labels(name: str) -> str:
    """An international name as DNS carries it (``bücher.example`` → ``xn--bcher-kva.example``), normal form.

    ``ValueError`` with a reason when there is no such form or no single one.
    """
    if not name.isascii():
        unclear = _DEVIATIONS.intersection(name)
        if unclear:
            raise ValueError(f"{sorted(unclear)[0]!r} means different domains in IDNA 2003 and 2008")
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError("no such international name") from error
    return normal(name)
