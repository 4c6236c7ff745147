"""Bytes: what comes out at one end is what went in at the other, in every size, direction and number."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from lab import addresses as at
from lab.grafting import Host, processes_of, read_line
from lab.internet import eventually
from lab.server_files import PAGE, SIZES

UPSTREAMS = {
    "direct": "direct",
    "socks5h": f"socks5h://{at.PROXY}:{at.SOCKS}",
    "dante": f"socks5h://{at.USER}:{at.PASSWORD}@{at.PROXY}:{at.DANTE_AUTH}",
    "http": f"http://{at.PROXY}:{at.TINYPROXY}",
}
PYTHON = "/usr/bin/python3"


@pytest.fixture(params=UPSTREAMS)
def upstream(request: pytest.FixtureRequest) -> str:
    return UPSTREAMS[request.param]


def descriptors(pids: list[int]) -> int:
    """How many descriptors these processes hold together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


@pytest.mark.timeout(300)
class TestSizes:
    def test_down(self, host: Host, upstream: str) -> None:
        command = "for f in empty one mebi big; do curl -sS http://example.com/$f | sha256sum || exit 1; done"
        done = host.graft(["--proxy", upstream], "sh", "-c", command, timeout=240)
        assert done.status == 0, done.stderr
        digests = [line.split()[0] for line in done.stdout.decode().splitlines()]
        assert digests == [host.lab.digests[name] for name in ("empty", "one", "mebi", "big")]
        flows = [flow for flow in done.tcp() if flow["outcome"] == "ok"]
        for flow, size in zip(flows, SIZES.values(), strict=True):
            assert size < flow["bytes_received"] < size + 1000  # and the headers
            assert 70 < flow["bytes_sent"] < 300

    def test_up(self, host: Host, upstream: str) -> None:
        url = f"http://example.com:{at.UPLOAD}/"
        command = f'for f in empty one mebi big; do curl -sS -T "$0/$f" {url} || exit 1; done'
        www = str(host.lab.place / "www")
        done = host.graft(["--proxy", upstream], "sh", "-c", command, www, timeout=240)
        assert done.status == 0, done.stderr
        said = [line.split() for line in done.stdout.decode().splitlines()]
        assert said == [
            [str(SIZES[name]), host.lab.digests[name]] for name in ("empty", "one", "mebi", "big")
        ]
        flows = [flow for flow in done.tcp() if flow["outcome"] == "ok"]
        for flow, size in zip(flows, SIZES.values(), strict=True):
            assert size < flow["bytes_sent"] < size + 1000

    def test_both_at_once(self, user_host: Host, upstream: str, programs: Path) -> None:
        done = user_host.graft(
            ["--proxy", upstream], PYTHON, str(programs / "talk.py"), "echo", at.WEB, str(at.ECHO)
        )
        assert json.loads(done.stdout) is True
        flow = done.one_tcp()
        assert (flow["bytes_sent"], flow["bytes_received"]) == (1 << 20, 1 << 20)


@pytest.mark.parametrize("address", [at.WEB, at.WEB6], ids=["IPv4", "IPv6"])
def test_128_streams_at_once(host: Host, upstream: str, programs: Path, address: str) -> None:
    done = host.graft(
        ["--proxy", upstream], PYTHON, str(programs / "many.py"), "128", address, str(at.ECHO), timeout=90
    )
    assert (done.status, done.stdout) == (0, b"128\n"), done.stderr
    flows = done.tcp()
    assert len(flows) == 128
    assert len({flow["process"]["pid"] for flow in flows}) == 1
    assert {(flow["bytes_sent"], flow["bytes_received"], flow["outcome"]) for flow in flows} == {
        (1 << 16, 1 << 16, "ok")
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", [[], ["--accept-first"]], ids=["held", "accept-first"])
@pytest.mark.parametrize("proxy", [[], ["--proxy", UPSTREAMS["socks5h"]]], ids=["direct", "socks5h"])
def test_2000_connections_leave_no_descriptor(
    user_host: Host, programs: Path, proxy: list[str], order: list[str]
) -> None:
    flows = user_host.flows_file()
    with user_host.started(
        ["--flows", str(flows), *order, *proxy], PYTHON, str(programs / "one_by_one.py"), "2000", at.WEB, "80"
    ) as process:
        assert process.stdin is not None
        assert read_line(process) == "warm"
        ours = processes_of(process.pid, PYTHON).ours
        before = descriptors(ours)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert read_line(process, 240) == "done"
        assert eventually(lambda: descriptors(ours) <= before + 4), (before, descriptors(ours))
        process.communicate(b"\n", timeout=30)
    records = [json.loads(line) for line in flows.read_text().splitlines()]
    assert len(records) == 2005
    assert {record["outcome"] for record in records} == {"ok"}
    assert {record["bytes_received"] for record in records} == {records[0]["bytes_received"]}
    assert all(record["process"] is not None for record in records)


@pytest.mark.parametrize("proxy", ["direct", UPSTREAMS["socks5h"], f"http://{at.PROXY}:{at.HOLD}"])
@pytest.mark.parametrize("order", [[], ["--accept-first"]], ids=["held", "accept-first"])
def test_a_client_that_leaves(user_host: Host, programs: Path, proxy: str, order: list[str]) -> None:
    """At whatever stage it leaves, nothing of it stays, and the next one is served."""
    hangs = proxy.endswith(f":{at.HOLD}")
    flows = user_host.flows_file()
    options = ["--flows", str(flows), *order, "--proxy", proxy]
    if hangs:  # only for the clients who do not wait for the end of a handshake
        script = (
            "import socket,sys\n"
            "def go(linger):\n"
            "    s = socket.socket(); s.setblocking(False); s.connect_ex((sys.argv[1], 80))\n"
            "    s.setblocking(True); s.setsockopt(1, 13, linger); s.close()\n"
            "print('warm', flush=True); sys.stdin.readline()\n"
            "for n in range(20): go(bytes(8) if n % 2 else b'\\1\\0\\0\\0\\0\\0\\0\\0')\n"
            "print('left', flush=True); sys.stdin.readline()\n"
        )
        command = [PYTHON, "-c", script, at.WEB]
    else:
        # A connection that was accepted first and then ended by its client may still have things to say, so the
        # dial goes on for it: with --accept-first no silent destination among these.
        silent = at.WEB if order else at.BLACKHOLE
        command = [PYTHON, str(programs / "leave.py"), at.WEB, "80", silent, str(at.HOLD)]
    with user_host.started(options, *command) as process:
        assert process.stdin is not None
        assert read_line(process) == "warm"
        ours = processes_of(process.pid, PYTHON).ours
        before = descriptors(ours)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert read_line(process, 60) == "left"
        # A dial that nobody waits for any longer may go on for the forwarder's own time limit, not longer.
        # In mode ptrace it has two sockets, for the program's is ours too.
        more = 4 if user_host.mode == "route" else 8
        assert eventually(lambda: descriptors(ours) <= before + more, 60), (before, descriptors(ours))
        _, err = process.communicate(b"\n", timeout=30)
    assert (process.returncode, user_host.told(err.decode())) == (0, "")
    outcomes = {json.loads(line)["outcome"] for line in flows.read_text().splitlines()}
    assert outcomes <= {"ok", "reset", "workload-gone", "timeout", "upstream-failed", "unreachable"}
    if not hangs:
        assert "ok" in outcomes


@pytest.mark.route
def test_a_client_that_resets_while_its_destination_is_silent(user_host: Host) -> None:
    """With --accept-first as well: after a reset nobody is there to be dialled for."""
    script = (
        "import socket, struct, sys\n"
        "print('warm', flush=True); sys.stdin.readline()\n"
        "for n in range(10):\n"
        "    s = socket.create_connection((sys.argv[1], 80))\n"
        "    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()\n"
        "print('left', flush=True); sys.stdin.readline()\n"
    )
    with user_host.started(["--accept-first"], PYTHON, "-c", script, at.BLACKHOLE) as process:
        assert process.stdin is not None
        assert read_line(process) == "warm"
        ours = processes_of(process.pid, PYTHON).ours
        before = descriptors(ours)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert read_line(process) == "left"
        assert eventually(lambda: descriptors(ours) <= before + 4, 20), (before, descriptors(ours))
        process.communicate(b"\n", timeout=30)


def test_many_programs_at_once(user_host: Host) -> None:
    """Thirty processes in one graft: each record names the right one."""
    command = (
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do"
        f" sh -c 'echo $$ $0 >>pids; exec curl -sS http://{at.WEB}/?$0' $n & done; wait"
    )
    done = user_host.graft([], "sh", "-c", command)
    assert done.stdout == PAGE * 30, done.stderr
    pids = dict(reversed(line.split()) for line in (user_host.place / "pids").read_text().splitlines())
    assert len(done.tcp()) == 30
    for flow in done.tcp():
        number = flow["process"]["argv"][-1].partition("?")[2]
        assert flow["process"]["pid"] == int(pids[number])


@pytest.mark.route
def test_a_long_idle_connection_lives(user_host: Host, programs: Path) -> None:
    """A connection that says nothing for a while is not ended by us."""
    script = (
        "import socket,sys\n"
        "s = socket.create_connection((sys.argv[1], 7)); print('open', flush=True); sys.stdin.readline()\n"
        "s.sendall(b'still there'); print(s.recv(100).decode())\n"
    )
    with user_host.started([], PYTHON, "-c", script, at.WEB) as process:
        assert read_line(process) == "open"
        time.sleep(3)  # the silence itself is what is tested
        out, err = process.communicate(b"\n", timeout=10)
    assert (process.returncode, out, err) == (0, b"still there\n", b"")


def test_digests_differ(lab) -> None:
    """The files are not all alike, or every comparison above would be worth nothing."""
    assert len(set(lab.digests.values())) == len(SIZES)
    assert lab.digests["empty"] == hashlib.sha256(b"").hexdigest()
