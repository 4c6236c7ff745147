"""The gate of F: what may come in from the workload's cable, as nftables rules, by netlink alone.

One table, three chains. *arriving* (before routing) drops SYNs that are held, hands TCP to the listener, lets DNS pass
where we answer it, and rejects the rest with an ICMP error. *inward* lets in what arriving accepted and nothing else.
*through* drops everything: F forwards nothing, whatever its sysctls say.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from netns_graft.linux.cable import DNS_PORT

_NFPROTO_INET = 1
_META_IIFNAME, _META_L4PROTO = 6, 16
_LL_HEADER, _TRANSPORT_HEADER = 0, 2
_EQ, _NEQ = 0, 1
_DROP, _ACCEPT = 0, 1
_REJECT_ICMPX = 2
_ICMPX_PORT_UNREACH, _ICMPX_ADMIN_PROHIBITED = 1, 3


def remove() -> None:
    with NFTables(nfgen_family=_NFPROTO_INET) as nft:
        nft.table("del", name="graft")


# Expression by expression; register 1 carries each value from its load to its comparison.


def _data(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _compare(value: bytes, operator: int = _EQ) -> Any:
    return genex("cmp", {"sreg": 1, "op": operator, "data": _data(value)})


def _arrives_by(interface: str) -> list[Any]:
    return [genex("meta", {"key": _META_IIFNAME, "dreg": 1}), _compare(interface.encode().ljust(16, b"\0"))]


def _protocol(number: int) -> list[Any]:
    return [genex("meta", {"key": _META_L4PROTO, "dreg": 1}), _compare(bytes([number]))]


def _payload(base: int, offset: int, length: int) -> Any:
    return genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": length})


def put_up(interface: str, port: int, *, mark: bytes | None, dns: bool) -> None:
    """Set the rules for what arrives by ``interface`` (it need not be there yet): TCP goes to the TPROXY listeners on
    ``port``. ``mark``: hold SYNs but for those from this MAC. ``dns``: let UDP port 53 in."""
    from_cable = _arrives_by(interface)
    tcp, udp = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_UDP)
    with NFTables(nfgen_family=_NFPROTO_INET) as nft:
        nft.table("add", name="graft")
        first = {"hook": "prerouting", "type": "filter", "policy": _ACCEPT, "priority": -150}
        nft.chain("add", table="graft", name="arriving", **first)
        if mark is not None:
            syn_without_ack = [
                _payload(_TRANSPORT_HEADER, 13, 1),
                genex("bitwise", {"sreg": 1, "dreg": 1, "len": 1, "mask": _data(b"\x12"), "xor": _data(b"\0")}),
                _compare(b"\x02"),
            ]
            not_ours = [_payload(_LL_HEADER, 6, 6), _compare(mark, _NEQ)]
            _add(nft, "arriving", from_cable, tcp, syn_without_ack, not_ours, verdict(_DROP))
        to_listener = [
            genex("immediate", {"dreg": 1, "data": _data(struct.pack("!H", port))}),
            genex("tproxy", {"family": 0, "reg_port": 1}),  # family 0: both, each to its own listener
        ]
        _add(nft, "arriving", from_cable, tcp, to_listener)

        to_dns = [_payload(_TRANSPORT_HEADER, 2, 2), _compare(struct.pack("!H", DNS_PORT))]
        accepted = [tcp] + ([udp + to_dns] if dns else [])
        # A program that sends UDP learns at once that nobody is there; anything else, that it may not. This is done
        # before routing: an ICMP error for an AnyIP destination would need that address as its source, which the
        # kernel refuses; from here it comes from the gateway.
        for wanted in accepted:
            _add(nft, "arriving", from_cable, wanted, verdict(_ACCEPT))
        _add(nft, "arriving", from_cable, udp, _reject(_ICMPX_PORT_UNREACH))
        _add(nft, "arriving", from_cable, _reject(_ICMPX_ADMIN_PROHIBITED))

        nft.chain("add", table="graft", name="inward", hook="input", type="filter", policy=_DROP)
        for wanted in accepted:
            _add(nft, "inward", from_cable, wanted, verdict(_ACCEPT))
        nft.chain("add", table="graft", name="through", hook="forward", type="filter", policy=_DROP)


def _reject(code: int) -> list[Any]:
    return [genex("reject", {"type": _REJECT_ICMPX, "icmp_code": code})]


def _add(nft: Any, chain: str, *expressions: list[Any]) -> None:
    nft.rule("add", table="graft", chain=chain, expressions=expressions)
