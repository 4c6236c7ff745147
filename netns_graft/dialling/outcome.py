"""What a dial is asked for, and what it gives: a connected socket, or an error that says who is to blame."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from enum import Enum

from netns_graft.flow import Outcome


@dataclass(slots=True, frozen=True)
class Target:
    """Where a flow wants to go. ``address`` wins where both are known: the program connected to that."""

    port: int
    address: str | None = None  # a literal, None when only the name is known
    host: str | None = None  # no trailing dot, lower case, IDNA A-label


@dataclass(slots=True)
class Dialled:
    """A way to the target that is open now. ``sock`` is the caller's to close.

    ``sock`` is connected, non-blocking and has TCP_NODELAY. ``upstream`` is a label without credentials.
    ``resolved`` is the address that a name was resolved to here, on the host, if that was done. ``early`` are
    bytes of the destination that came joined with the last proxy's answer: they stand before everything that
    ``sock`` will give.
    """

    sock: socket.socket
    upstream: str
    resolved: str | None = None
    early: bytes = b""


class Blame(Enum):
    """Who is to blame for a failed dial; decides whether another upstream is worth a try."""

    TARGET = "target"  # the same by every way: final
    WAY = "way"  # this way does not lead there, though nothing is wrong with it: try the next
    PROXY = "proxy"  # the proxy itself: try the next, and leave this one alone for a while


class DialError(Exception):
    """The target was not reached. ``str()`` is the text for the record; it never holds credentials.

    ``errno`` is what the program's ``connect()`` should report. What the kernel has no errno for (a proxy
    that does not work, credentials that it refuses) is ECONNREFUSED: every program takes that for "nobody
    serves you here".
    """

    def __init__(
        self, text: str, outcome: Outcome, number: int = errno.ECONNREFUSED, blame: Blame = Blame.TARGET
    ) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.errno = number
        self.blame = blame
        self.upstream: str | None = None  # label of the upstream that it is about, the last one tried


# What connect(2) says → what the flow's record says, and what the program is told.
_CONNECT_ERRORS = {
    errno.ECONNREFUSED: (Outcome.REFUSED, errno.ECONNREFUSED),
    errno.ECONNRESET: (Outcome.REFUSED, errno.ECONNREFUSED),
    errno.ETIMEDOUT: (Outcome.TIMEOUT, errno.ETIMEDOUT),
    errno.ENETUNREACH: (Outcome.UNREACHABLE, errno.ENETUNREACH),
    errno.ENETDOWN: (Outcome.UNREACHABLE, errno.ENETUNREACH),
    errno.EAFNOSUPPORT: (Outcome.UNREACHABLE, errno.ENETUNREACH),  # IPv6 is switched off on the host
    errno.EACCES: (Outcome.UNREACHABLE, errno.EACCES),
    errno.EPERM: (Outcome.UNREACHABLE, errno.EACCES),  # the host's own firewall
}


def connect_error(error: OSError, where: str) -> DialError:
    """``connect()`` to ``where`` failed: refused is the target's word, all else may be this way's alone."""
    number = error.errno or errno.EHOSTUNREACH
    outcome, told = _CONNECT_ERRORS.get(number, (Outcome.UNREACHABLE, errno.EHOSTUNREACH))
    blame = Blame.TARGET if outcome is Outcome.REFUSED else Blame.WAY
    return DialError(f"connect to {where}: {os.strerror(number).lower()}", outcome, told, blame)


def resolve_error(error: OSError, host: str) -> DialError:
    """The host's resolver has no address for ``host``, or did not say so in time."""
    if isinstance(error, TimeoutError):
        text = f"cannot resolve {host}: the resolver did not answer in time"
        return DialError(text, Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.WAY)
    text = f"cannot resolve {host}: {(error.strerror or str(error)).lower()}"
    return DialError(text, Outcome.UNREACHABLE, errno.EHOSTUNREACH, Blame.WAY)
