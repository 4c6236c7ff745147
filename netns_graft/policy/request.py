"""What is asked of a policy and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from netns_graft.flow import Process


@dataclass(slots=True, frozen=True)
class Request:
    """One flow that wants out.

    ``host`` is the name that the program asked for (A-labels; any case, a trailing dot is fine), None when
    it used a bare address. ``address`` is packed, 4 or 16 bytes in network order, None while only the name
    is known. ``host_owned``: the kernel says that this address is one of the host's own, its broadcast
    addresses included. ``shares_host``: the program lives in the host's own network, whose loopback and addresses
    are no more closed to it than any others.
    """

    host: str | None
    address: bytes | None
    port: int
    protocol: str = "tcp"
    host_owned: bool = False
    process: Process | None = None
    shares_host: bool = False


@dataclass(slots=True, frozen=True)
class Decision:
    """A verdict and the rule that gave it, as it stands in the flow record.

    ``rule``: ``default``, an option as the user wrote it (``--allow *.pypi.org:443``), or ``protected:WHAT``.
    """

    allow: bool
    rule: str


class NeedsAddress:
    """No verdict yet: it hangs on where the name leads. Resolve, then ask again for each address."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEEDS_ADDRESS"


NEEDS_ADDRESS = NeedsAddress()
