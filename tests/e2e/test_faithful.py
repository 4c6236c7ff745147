"""A relayed connection behaves like one that is not: how it opens, how it ends, and how soon a byte arrives."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from lab import addresses as at
from lab.grafting import Grafted, Host
from lab.internet import eventually

UPSTREAMS = {"direct": "direct", "socks4a": f"socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}"}
PYTHON = "/usr/bin/python3"


@pytest.fixture(params=UPSTREAMS)
def upstream(request: pytest.FixtureRequest) -> list[str]:
    return ["--proxy", UPSTREAMS[request.param]]


@pytest.fixture(params=[[], ["--accept-first"]], ids=["held", "accept-first"])
def order(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@pytest.fixture
def talk(user_host: Host, programs: Path, upstream: list[str], order: list[str]) -> Any:
    def go(kind: str, port: int, address: str = at.WEB) -> tuple[Any, Grafted]:
        done = user_host.graft(
            [*upstream, *order], PYTHON, str(programs / "talk.py"), kind, address, str(port), timeout=40
        )
        assert (done.status, done.stderr) == (0, "")
        return json.loads(done.stdout), done

    return go


def connect(
    host: Host, programs: Path, address: str, port: int, *limit: str
) -> tuple[dict[str, Any], Grafted]:
    done = host.graft([], PYTHON, str(programs / "connect.py"), address, str(port), *limit)
    return json.loads(done.stdout), done


class TestOpening:
    @pytest.mark.parametrize("address", [at.WEB, at.WEB6], ids=["IPv4", "IPv6"])
    def test_a_closed_port_refuses_at_once(self, host: Host, programs: Path, address: str) -> None:
        seen, done = connect(host, programs, address, at.CLOSED)
        assert seen["error"] == "ECONNREFUSED"
        assert seen["seconds"] < 1
        assert done.one_tcp()["outcome"] == "refused"

    def test_an_open_port_opens_at_once(self, host: Host, programs: Path) -> None:
        seen, _ = connect(host, programs, at.WEB, at.HTTP)
        assert seen["error"] is None
        assert seen["seconds"] < 1

    def test_unreachable_is_said_so(self, host: Host, programs: Path) -> None:
        seen, done = connect(host, programs, at.UNREACHABLE, at.HTTP)
        assert seen["error"] == "EHOSTUNREACH"
        # An ICMP error that finds the dialler still inside connect() is a hint to its kernel only, which then asks
        # once more after a second. It does so for any program.
        assert seen["seconds"] < 2
        assert done.one_tcp()["outcome"] == "unreachable"

    def test_silence_stays_silence(self, user_host: Host, programs: Path) -> None:
        """Nobody answers: the program waits as it would have waited, and is not told that it is connected."""
        seen, done = connect(user_host, programs, at.BLACKHOLE, at.HTTP, "3")
        assert seen["error"] == "timeout"
        assert done.one_tcp()["outcome"] in ("workload-gone", "timeout")

    def test_it_is_the_same_on_the_host(self, user_host: Host, programs: Path) -> None:
        """The errors above are those that the program gets with no graft at all."""
        for address, port, error in (
            (at.WEB, at.CLOSED, "ECONNREFUSED"), (at.UNREACHABLE, 80, "EHOSTUNREACH"), (at.WEB, 80, None),
        ):  # fmt: skip
            done = user_host.run(PYTHON, str(programs / "connect.py"), address, str(port))
            assert json.loads(done.stdout)["error"] == error

    @pytest.mark.route
    def test_the_peers_address_is_the_destination(self, user_host: Host) -> None:
        """getpeername() and getsockname() say what they would say anywhere."""
        script = (
            "import socket, sys; s = socket.create_connection((sys.argv[1], 80));"
            "print(s.getpeername()[:2], s.getsockname()[0])"
        )
        done = user_host.graft([], PYTHON, "-c", script, at.WEB)
        assert done.stdout.decode().split(") ") == [
            f"('{at.WEB}', 80", f"{done.one_tcp()['source']['address']}\n"
        ]  # fmt: skip


class TestEnding:
    def test_our_half_first(self, talk: Any) -> None:
        answer, done = talk("close_first", at.COUNT)
        assert answer.split()[0] == "300000"
        flow = done.one_tcp()
        assert (flow["bytes_sent"], flow["bytes_received"], flow["outcome"]) == (300_000, len(answer), "ok")

    def test_the_servers_half_first(self, talk: Any, lab: Any) -> None:
        began = time.time()
        answer, done = talk("close_second", at.SPEAK_THEN_LISTEN)
        assert answer == "hello\n"
        (event,) = eventually(lambda: lab.events("speak_then_listen", began))
        assert (event["received"], event["end"]) == (100_000, "eof")
        flow = done.one_tcp()
        assert (flow["bytes_sent"], flow["bytes_received"], flow["outcome"]) == (100_000, 6, "ok")

    def test_reset_by_the_server(self, talk: Any, upstream: list[str]) -> None:
        answer, done = talk("wait_for_reset", at.RESET_AFTER_BYTE)
        assert answer["seen"] == "ready\n"
        if upstream[-1] == "direct":  # the proxy passes on an end of stream
            assert answer["end"] == "reset"
            assert done.one_tcp()["outcome"] == "reset"

    def test_reset_at_once(self, user_host: Host, programs: Path) -> None:
        """The reset may overtake the end of the handshake, on the host as well: then connect() fails."""
        done = user_host.graft(
            [], PYTHON, str(programs / "talk.py"), "wait_for_reset", at.WEB, str(at.RESET_AT_ONCE)
        )
        if done.status == 0:
            assert json.loads(done.stdout) == {"seen": "", "end": "reset"}
        else:
            assert "ConnectionResetError" in done.stderr or "ConnectionRefusedError" in done.stderr
        assert done.one_tcp()["outcome"] in ("reset", "refused")

    def test_reset_by_the_client(self, user_host: Host, programs: Path, order: list[str]) -> None:
        began = time.time()
        done = user_host.graft(order, PYTHON, str(programs / "talk.py"), "reset", at.WEB, str(at.HOLD))
        assert done.status == 0, done.stderr
        outcome = done.one_tcp()["outcome"]
        if order and outcome == "workload-gone":
            return  # accepted first, it left before its destination was reached: nobody was there to be told
        (event,) = eventually(lambda: user_host.lab.events("hold", began))
        assert event["end"] == "reset"
        assert outcome == "reset"

    def test_a_killed_client(self, user_host: Host) -> None:
        """Its socket is closed by the kernel: with nothing unread that is an end of stream, as on the host."""
        began = time.time()
        script = (
            "import os, signal, socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
            "s.sendall(b'123'); os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = user_host.graft([], PYTHON, "-c", script, at.WEB, str(at.HOLD))
        assert done.status == 128 + 9
        (event,) = eventually(lambda: user_host.lab.events("hold", began))
        assert (event["received"], event["end"]) == (3, "eof")


def test_small_writes_are_not_held_back(talk: Any) -> None:
    """TCP_NODELAY on both sides of the relay: with Nagle's rule on one of them a round takes 40 ms and more."""
    median, _ = talk("pairs", at.PAIRS)
    assert median < 0.02


@pytest.mark.parametrize("address", [at.WEB, at.WEB6], ids=["IPv4", "IPv6"])
def test_there_and_back(host: Host, programs: Path, address: str) -> None:
    done = host.graft([], PYTHON, str(programs / "talk.py"), "echo", address, str(at.ECHO))
    assert json.loads(done.stdout) is True
