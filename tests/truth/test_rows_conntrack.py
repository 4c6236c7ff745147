"""Row 12: conntrack that cannot help. Nobody is named rather than a stranger, and the flow goes its way."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import in_own_namespaces
from ground.network import OTHER, WEB

from netns_graft.attribution import AttributionMethod, Attributor
from netns_graft.flow import Attribution
from netns_graft.linux import conntrack
from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.vantage import Vantage
from truth.judging import METHODS
from truth.scene import Scene, Score, Truth, report, scene

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_CREATE = (1 << 8) | 0  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_NLM_F_REQUEST, _NLM_F_CREATE = 0x1, 0x400
_ASSURED = (1 << 2) | (1 << 3)  # IPS_ASSURED, IPS_CONFIRMED: not thrown out to make room


@contextmanager
def asking(it: Scene, method: AttributionMethod) -> Iterator[Attributor]:
    """An attributor of the test's own that looks into the same W, to be asked at a moment of our choice."""
    attributor = Attributor(Vantage(it.workload.fd), method=method)
    attributor.started(os.getpid())
    yield attributor
    attributor.close()


def ask(attributor: Attributor, source: tuple[str, int]) -> Attribution:
    return attributor.who(TCP, socket.inet_aton(source[0]), source[1], socket.inet_aton(WEB), 80)


def score(found: list[tuple[Attribution, Truth]]) -> Score:
    result = Score()
    for attribution, truth in found:
        if attribution.process is None:
            result.null += 1
        elif attribution.process.pid == truth.pid:
            result.right += 1
        else:
            result.wrong += 1
    return result


def hold(it: Scene, port: int) -> None:
    sock = it.connect(WEB, bound=("198.18.0.1", port))
    time.sleep(1.0)
    sock.close()


@METHODS
@in_own_namespaces
def test_an_entry_that_is_gone(method: AttributionMethod) -> None:
    """Two programs with exchanged ports. While the entries are there both are right; flushed, both are nobody: the
    socket with those addresses is the other one's."""
    with scene(method) as it, asking(it, method) as attributor:
        it.nat("  tcp sport 40001 snat to 198.18.0.1:40002\n  tcp sport 40002 snat to 198.18.0.1:40001\n")
        for port in (40001, 40002):
            it.program(lambda port=port: hold(it, port))
        assert _until(lambda: len(it.ledger.read()) == 2)
        truths = {truth.source[1]: truth for truth in it.ledger.read()}
        pairs = [(("198.18.0.1", 40002), truths[40001]), (("198.18.0.1", 40001), truths[40002])]
        before = score([(ask(attributor, wire), truth) for wire, truth in pairs])
        assert (before.right, before.wrong) == (2, 0)
        it.inside("conntrack", "-F")
        after = score([(ask(attributor, wire), truth) for wire, truth in pairs])
        report("12", "entry gone before the look-up, ports exchanged", method, after)
        assert (after.right, after.null, after.wrong) == (0, 2, 0)


@METHODS
@pytest.mark.parametrize("verdict", ["allow", "deny"])
@in_own_namespaces
def test_no_entry_although_others_have_one(verdict: str, method: str) -> None:
    """As the forwarder sees an entry that is gone: null and counted, and the flow goes on or is denied as ever."""
    with scene(method, (verdict, f"{OTHER}:80")) as it:
        it.nat("  oifname eth0 snat to 172.31.5.9")
        it.program(it.once(WEB))
        it.records.append(it.it.flow())
        it.inside(
            "nft", "-f", "-",
            text="table ip gone { chain out { type filter hook output priority -300;\n"
            f"ip daddr {OTHER} notrack\n}}\n}}\n",
        )  # fmt: skip

        def work() -> None:
            try:
                it.connect(OTHER).close()
            except OSError:  # as the policy says it to the program
                assert verdict == "deny"

        it.program(work)
        it.records.append(it.it.flow())
        it.run_all()
        first, second = it.records
        assert first["process"] is not None and second["process"] is None
        assert second["verdict"] == verdict
        report("12", f"no entry although others have one, {verdict}", method, Score(right=1, null=1))
        assert it.it.finish()["unattributed"] == 1


def _until(true: object, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.005)
    return False


def fill(it: Scene, limit: int) -> None:
    """Entries up to the limit, none of which the kernel would give up for a new one."""
    sock = it.workload.socket(socket.AF_NETLINK, socket.SOCK_RAW, conntrack.NETLINK_NETFILTER)
    with sock:
        batch = b""
        for number in range(limit + 64):
            way = Tuple(struct.pack("!I", 0x0A000000 + number), 7, b"\x0b\0\0\1", 9)
            body = bytes([socket.AF_INET, 0, 0, 0])
            body += conntrack._packed_tuple(1, UDP, way) + conntrack._packed_tuple(2, UDP, way.turned())
            body += conntrack._attribute(3, struct.pack("!I", _ASSURED))  # CTA_STATUS
            body += conntrack._attribute(7, struct.pack("!I", 600))  # CTA_TIMEOUT
            batch += struct.pack("=IHHII", 16 + len(body), _CREATE, _NLM_F_REQUEST | _NLM_F_CREATE, 0, 0) + body
            if len(batch) > 100_000:
                sock.send(batch)
                batch = b""
        sock.send(batch)


@pytest.mark.parametrize("method", ["sock_diag"])
@in_own_namespaces
def test_a_full_table(method: str) -> None:
    """No room: the kernel drops the SYN, we see none. When there is room again the next one is attributed."""
    with scene(method) as it:
        it.nat("  oifname eth0 snat to 172.31.5.9")
        it.program(it.once(WEB))
        it.records.append(it.it.flow())
        vantage = Vantage(it.workload.fd)
        with open("/proc/sys/net/netfilter/nf_conntrack_max") as file:
            limit = int(file.read())
        fill(it, limit)
        assert vantage.tracked_entries() >= limit
        vantage.close()
        it.program(it.once(WEB))
        time.sleep(0.3)
        assert not it.it._text
        it.inside("conntrack", "-F")
        result = it.score(2)
        report("12", "table full, then not", method, result)
        assert (result.right, result.wrong, result.null) == (2, 0, 0)
