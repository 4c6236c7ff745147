"""What graftcp 0.8 does, done here: each of our rows of the README's table, with real programs, in both modes.

``row`` names the rows that a test tries; the last test holds the README to them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lab import addresses as at
from lab.grafting import Grafted, Host, command_of, descendants, read_line, state_of
from lab.internet import eventually
from lab.server_files import PAGE
from lab.sniffer import Sniffer

PYTHON = "/usr/bin/python3"
SOCKS = f"socks5://{at.PROXY}:{at.SOCKS}"
SOCKS_AUTH = f"socks5://{at.PROXY}:{at.SOCKS_AUTH}"
HTTP = f"http://{at.PROXY}:{at.TINYPROXY}"
HTTP_AUTH = f"http://{at.PROXY}:{at.TINYPROXY_AUTH}"
DEAD_SOCKS, DEAD_HTTP = f"socks5://{at.PROXY}:{at.CLOSED}", f"http://{at.PROXY}:{at.CLOSED}"

WEB_URL, WEB6_URL, OTHER_URL = f"http://{at.WEB}/", f"http://[{at.WEB6}]/", f"http://{at.OTHER}/"
ONLY_PTRACE = pytest.mark.parametrize("mode", ["ptrace"])

rows: set[str] = set()
Test = TypeVar("Test", bound=Callable[..., Any])


def row(*names: str) -> Callable[[Test], Test]:
    rows.update(names)
    return lambda test: test


@pytest.fixture(params=["route", "ptrace"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each row in either mode: what reaches the forwarder by other ways is served the same."""
    return str(request.param)


def fetch(host: Host, *options: str, url: str = WEB_URL, **more: Any) -> Grafted:
    return host.graft(options, "curl", "-sS", url, **more)


@dataclass(frozen=True)
class Way:
    """A page fetched with these options leaves by this upstream."""

    options: list[str]
    upstream: str
    url: str = WEB_URL
    files: dict[str, str] = field(default_factory=dict)


WEB_LIST = f"# the web server\n{at.WEB}\n{at.WEB6.partition('::')[0]}::/64\n"
WAYS = {
    "TCP": [Way([], "direct"), Way(["--proxy", SOCKS], SOCKS)],
    "IPv6": [Way([], "direct", WEB6_URL), Way(["--proxy", SOCKS], SOCKS, WEB6_URL)],
    "SOCKS5 with user and password": [
        Way(["--proxy", f"socks5://{at.USER}:{at.PASSWORD}@{at.PROXY}:{at.SOCKS_AUTH}"], SOCKS_AUTH)
    ],
    "HTTP CONNECT": [Way(["--proxy", HTTP], HTTP), Way(["--proxy", HTTP], HTTP, WEB6_URL)],
    "HTTP CONNECT with user and password": [
        Way(["--proxy", f"http://{at.USER}:{at.PASSWORD}@{at.PROXY}:{at.TINYPROXY_AUTH}"], HTTP_AUTH)
    ],
    "chains of proxies, and the next when one is down": [
        Way(["--proxy", f"{HTTP},{SOCKS}"], f"{HTTP},{SOCKS}"),
        Way(["--proxy", DEAD_HTTP, "--proxy", SOCKS], SOCKS),
    ],
    "auto, random, only one kind, direct": [
        Way(["--select-proxy-mode", "auto", "--proxy", HTTP, "--proxy", SOCKS], SOCKS),
        Way(["--select-proxy-mode", "auto", "--proxy", HTTP, "--proxy", DEAD_SOCKS], HTTP),
        Way(["--select-proxy-mode", "auto", "--proxy", DEAD_HTTP, "--proxy", DEAD_SOCKS], "direct"),
        Way(["--select-proxy-mode", "only_http_proxy", "--proxy", SOCKS, "--proxy", HTTP], HTTP),
        Way(["--select-proxy-mode", "only_socks5", "--proxy", HTTP, "--proxy", SOCKS], SOCKS),
        Way(["--select-proxy-mode", "direct", "--proxy", SOCKS], "direct"),
    ],
    "addresses that go directly, by file": [
        Way(["--proxy", SOCKS, "--direct-file", "web.txt"], "direct", files={"web.txt": WEB_LIST}),
        Way(["--proxy", SOCKS, "--direct-file", "web.txt"], "direct", WEB6_URL, {"web.txt": WEB_LIST}),
        Way(["--proxy", SOCKS, "--direct-file", "web.txt"], SOCKS, OTHER_URL, {"web.txt": WEB_LIST}),
        # The list counts for what names turn out to mean, also with a proxy that would have taken them.
        Way(["--proxy", HTTP, "--direct-file", "web.txt"], "direct", "http://example.com/", {"web.txt": WEB_LIST}),
        Way(["--proxy", HTTP, "--direct-file", "web.txt"], HTTP, "http://other.example.net/", {"web.txt": WEB_LIST}),
    ],
    "addresses that alone go by proxy, by file": [
        Way(["--proxy", SOCKS, "--proxy-file", "web.txt"], SOCKS, files={"web.txt": WEB_LIST}),
        Way(["--proxy", SOCKS, "--proxy-file", "web.txt"], "direct", OTHER_URL, {"web.txt": WEB_LIST}),
    ],
    "configuration file": [
        Way(["--graftcp-config", "g.conf"], SOCKS, files={"g.conf": f"socks5 = {at.PROXY}:{at.SOCKS}\n"}),
        Way(
            ["--graftcp-config", "g.conf"], SOCKS_AUTH,
            files={"g.conf": f"## mine\nsocks5={at.PROXY}:{at.SOCKS_AUTH}\nsocks5_username = {at.USER}\n"
                             f"socks5_password = {at.PASSWORD}\nselect_proxy_mode = only_socks5\n"},
        ),
        Way(
            ["--graftcp-config", "g.conf"], HTTP, OTHER_URL,
            files={"g.conf": f"socks5 =\nhttp_proxy = {at.PROXY}:{at.TINYPROXY}\nblackip_file_path = web.txt\n",
                   "web.txt": WEB_LIST},
        ),
        Way(
            ["--graftcp-config", "g.conf"], "direct",
            files={"g.conf": f"socks5 = {at.PROXY}:{at.SOCKS}\nblackip_file_path = web.txt\n", "web.txt": WEB_LIST},
        ),
        Way(
            ["--graftcp-config", "g.conf"], "direct",
            files={"g.conf": f"socks5 = {at.PROXY}:{at.CLOSED}\nselect_proxy_mode = auto\n"},
        ),
        Way(
            ["--graftcp-config", "g.conf", "--proxy", HTTP], HTTP,
            files={"g.conf": f"socks5 = {at.PROXY}:{at.CLOSED}\n"},
        ),
    ],
}  # fmt: skip


@row(*WAYS)
@pytest.mark.parametrize(
    "way", [pytest.param(way, id=f"{name}-{n}") for name, ways in WAYS.items() for n, way in enumerate(ways)]
)
def test_the_way_that_a_page_comes(user_host: Host, way: Way) -> None:
    for name, text in way.files.items():
        user_host.script(name, text, mode=0o644)
    done = fetch(user_host, *way.options, url=way.url)
    assert (done.status, done.stdout) == (0, PAGE), done.stderr
    # With a host name curl may try both families; the one that served is meant.
    served = [flow["upstream"] for flow in done.tcp() if flow["outcome"] == "ok"]
    assert served == [way.upstream]


def test_in_the_configuration_file_auto_has_to_be_asked_for(user_host: Host) -> None:
    """graftcp goes directly when the proxies fail and nothing is said. Here nothing goes past them unsaid."""
    user_host.script("g.conf", f"socks5 = {at.PROXY}:{at.CLOSED}\n", mode=0o644)
    done = fetch(user_host, "--graftcp-config", "g.conf")
    assert (done.status, done.one_tcp()["outcome"]) == (7, "upstream-failed")


def test_a_wrong_password_is_the_proxys_to_refuse(user_host: Host) -> None:
    done = fetch(user_host, "--proxy", f"socks5://{at.USER}:not-it@{at.PROXY}:{at.SOCKS_AUTH}")
    assert (done.status, done.one_tcp()["outcome"]) == (7, "upstream-auth")


@row("auto, random, only one kind, direct")
def test_at_random_by_both(user_host: Host) -> None:
    """Of 24 flows all by the same one of two: once in eight million runs."""
    done = user_host.graft(
        ["--select-proxy-mode", "random", "--proxy", SOCKS, "--proxy", HTTP],
        "sh", "-c", f"for n in $(seq 24); do curl -sS {WEB_URL} || exit; done",
    )  # fmt: skip
    assert (done.status, done.stdout) == (0, PAGE * 24), done.stderr
    assert {flow["upstream"] for flow in done.tcp()} == {SOCKS, HTTP}


class TestDns:
    @row("DNS over TCP through the proxy")
    def test_over_tcp_through_the_proxy(self, user_host: Host) -> None:
        """A resolver that only the proxy asks: it hears of it by TCP, and no question crosses the cable as one."""
        began = time.time()
        with Sniffer(user_host.lab) as sniffer:
            done = fetch(
                user_host, "--proxy", SOCKS, "--dns-server", at.DNS_OF_PROXIES, url="http://v4only.example.com/"
            )
            frames = sniffer.seen()
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        assert {frame.destination_port for frame in frames} == {at.SOCKS}
        asked = user_host.lab.questions(began, at.DNS_OF_PROXIES)
        assert asked and {question["transport"] for question in asked} == {"tcp"}
        assert user_host.lab.questions(began) == []
        dns = [flow for flow in done.flows if flow["protocol"] == "dns"]
        assert {flow["upstream"] for flow in dns} == {f"{SOCKS},{at.DNS_OF_PROXIES}:53"}
        assert done.one_tcp()["destination"]["host"] == "v4only.example.com"

    @row("DNS over TCP through the proxy", "configuration file")
    def test_as_graftcps_configuration_says_it(self, user_host: Host) -> None:
        text = f"socks5 = {at.PROXY}:{at.SOCKS}\ndns_proxy = true\ndns_server = {at.DNS_OF_PROXIES}:53\n"
        user_host.script("g.conf", text, mode=0o644)
        began = time.time()
        done = fetch(user_host, "--graftcp-config", "g.conf", url="http://v4only.example.com/")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        assert user_host.lab.questions(began, at.DNS_OF_PROXIES) and not user_host.lab.questions(began)

    @row("names given to the proxy, no question asked")
    def test_names_go_to_the_proxy(self, user_host: Host) -> None:
        began = time.time()
        done = fetch(user_host, "--proxy", f"socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}", url="http://example.com/")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        events = user_host.lab.events("socks4a", began)
        assert {event["asked"] for event in events if "asked" in event} == {"example.com"}
        assert user_host.lab.questions(began) == []

    @row("`recvfrom` and `recvmsg` tell the resolver that was asked")
    @pytest.mark.parametrize("call", ["recvfrom", "recvmsg"])
    def test_the_answer_comes_from_whom_was_asked(self, user_host: Host, call: str) -> None:
        code = (
            "import socket, sys, json, dns.message\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
            "s.sendto(dns.message.make_query('example.com', 'A').to_wire(), (sys.argv[1], 53))\n"
            "data, *_, peer = s.recvfrom(4096) if sys.argv[2] == 'recvfrom' else s.recvmsg(4096)\n"
            "print(json.dumps([peer, [r.address for r in dns.message.from_wire(data).answer[0]]]))\n"
        )
        done = user_host.graft(["--dns", "forward"], sys.executable, "-c", code, "8.8.8.8", call)
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout) == [["8.8.8.8", 53], [at.WEB]]
        assert done.names() == ["example.com"]


class TestLocal:
    """Something listens on the lab host's loopback, and a SOCKS proxy stands there too."""

    URL = f"http://127.0.0.1:{at.HOST_LOOPBACK_PAGE}/"

    def page(self, host: Host) -> bytes:
        return host.run("curl", "-sS", self.URL).stdout

    @row("local addresses left alone")
    def test_left_alone(self, user_host: Host) -> None:
        """In mode route the loopback is the program's own, and nobody listens there."""
        done = fetch(user_host, "--proxy", SOCKS, url=self.URL)
        if user_host.mode == "route":
            assert (done.status, done.flows) == (7, [])
        else:
            assert (done.status, done.stdout, done.flows) == (0, self.page(user_host), [])

    @row("local addresses left alone")
    @ONLY_PTRACE
    @pytest.mark.parametrize("address", ["127.0.0.1", at.HOST, f"[{at.HOST6}]", "[::1]", "0.0.0.0"])
    def test_every_address_of_the_host(self, user_host: Host, address: str) -> None:
        url = f"http://{address}:{at.HOST_PAGE}/"
        done = fetch(user_host, "--proxy", SOCKS, url=url)
        plain = user_host.run("curl", "-sS", url)
        assert (done.status, done.stdout, done.flows) == (plain.returncode, plain.stdout, [])

    @row("`--not-ignore-local`")
    @ONLY_PTRACE
    def test_not_left_alone(self, user_host: Host) -> None:
        """By a proxy that is on the loopback itself: it reaches what the program would."""
        done = fetch(user_host, "--not-ignore-local", "--proxy", "socks5://127.0.0.1:1080", url=self.URL)
        assert (done.status, done.stdout) == (0, self.page(user_host)), done.stderr
        flow = done.one_tcp()
        assert (flow["upstream"], flow["destination"]["address"]) == ("socks5://127.0.0.1:1080", "127.0.0.1")

    @row("`--not-ignore-local`", "configuration file")
    @ONLY_PTRACE
    def test_not_left_alone_by_the_configuration_file(self, user_host: Host) -> None:
        user_host.script("g.conf", "ignore_local = false\n", mode=0o644)
        done = fetch(user_host, "--graftcp-config", "g.conf", url=self.URL)
        assert (done.status, done.stdout) == (0, self.page(user_host)), done.stderr
        assert done.one_tcp()["upstream"] == "socks5://127.0.0.1:1080"  # graftcp's default

    @row("the clouds' metadata address is closed until a rule names it")
    def test_metadata_stays_closed(self, user_host: Host) -> None:
        done = fetch(user_host, url=f"http://{at.METADATA}/")
        assert done.status == 7
        assert (done.one_tcp()["verdict"], done.one_tcp()["rule"]) == ("deny", "protected:link-local")


class TestUser:
    TELLS = 'id -un; id -Gn; echo "$HOME"; grep CapEff /proc/self/status; curl -sS "$0"'

    @row("run as another user")
    @pytest.mark.parametrize("by", ["option", "configuration file"])
    def test_as_root(self, root_host: Host, by: str) -> None:
        root_host.script("g.conf", "username = graft-nosub\nselect_proxy_mode = direct\n", mode=0o644)
        options = ["--user", "graft-nosub"] if by == "option" else ["--graftcp-config", "g.conf"]
        root_host.place.chmod(0o755)
        done = root_host.graft(options, "sh", "-c", self.TELLS, WEB_URL)
        assert done.status == 0, done.stderr
        name, groups, home, capabilities, *page = done.stdout.splitlines()
        told = root_host.run("sh", "-c", "id -Gn graft-nosub; getent passwd graft-nosub | cut -d: -f6").stdout
        assert [name, groups, home] == [b"graft-nosub", *told.splitlines()]
        assert int(capabilities.split()[1], 16) == 0
        assert page == [PAGE.rstrip()]
        nosub = root_host.lab.identities["nosub"]
        assert done.one_tcp()["process"]["uid"] == nosub.uid

    @row("run as another user")
    def test_nobody_but_root_may(self, user_host: Host) -> None:
        done = user_host.graft(["--user", "graft-nosub"], "true")
        assert done.status in (2, 125)
        assert "only root" in done.error_line()

    @row("run as another user")
    def test_no_such_user(self, root_host: Host) -> None:
        done = root_host.graft(["--user", "no-such-user"], "true")
        assert done.status in (2, 125)
        assert "there is no user 'no-such-user'" in done.error_line()


@row("static programs")
@pytest.mark.parametrize("program", ["busybox", "go"])
def test_static_programs(user_host: Host, programs: Path, program: str) -> None:
    fetcher = ["busybox", "wget", "-q", "-O", "-"] if program == "busybox" else [str(programs / "fetch-static")]
    done = user_host.graft(["--proxy", SOCKS], *fetcher, WEB_URL)
    assert (done.status, done.stdout) == (0, PAGE), done.stderr
    assert done.one_tcp()["upstream"] == SOCKS


@row("exit status")
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 37", 37), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_exit_status(user_host: Host, script: str, status: int) -> None:
    assert user_host.graft([], "sh", "-c", script).status == status


class TestTheProgramCannotTell:
    @row("`connect` gives the errno of the real outcome")
    @pytest.mark.parametrize("proxy", ["direct", SOCKS])
    @pytest.mark.parametrize("blocking", [True, False])
    def test_errno(self, user_host: Host, proxy: str, blocking: bool) -> None:
        code = (
            "import socket, sys, errno, select\n"
            "s = socket.socket(); s.setblocking(sys.argv[3] == 'True')\n"
            "number = s.connect_ex((sys.argv[1], int(sys.argv[2])))\n"
            "if number == errno.EINPROGRESS:\n"
            "    select.select([], [s], [], 20)\n"
            "    number = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)\n"
            "print(errno.errorcode.get(number, number))\n"
        )
        told = {}
        for address, port in ((at.WEB, at.HTTP), (at.WEB, at.CLOSED), (at.UNREACHABLE, at.HTTP)):
            done = user_host.graft(
                ["--proxy", proxy], PYTHON, "-c", code, address, str(port), str(blocking)
            )
            assert done.status == 0, done.stderr
            told[address, port] = done.stdout.decode().strip()
        assert told == {
            (at.WEB, at.HTTP): "0", (at.WEB, at.CLOSED): "ECONNREFUSED", (at.UNREACHABLE, at.HTTP): "EHOSTUNREACH",
        }  # fmt: skip

    @row("`getpeername` and `getsockname` as with a direct connection", "IPv6 sockets, `IPV6_V6ONLY` and IPv4-mapped")
    @pytest.mark.parametrize(
        ("address", "v6only"), [(at.WEB, None), (at.WEB6, 0), (at.WEB6, 1), (f"::ffff:{at.WEB}", 0)]
    )
    def test_its_own_and_the_other_end(self, user_host: Host, address: str, v6only: int | None) -> None:
        code = (
            "import socket, sys, json\n"
            "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
            "if sys.argv[2] != 'None': s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sys.argv[2]))\n"
            "s.connect((sys.argv[1], 80))\n"
            "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
            "page = b''.join(iter(lambda: s.recv(4096), b''))\n"
            "print(json.dumps([s.getpeername()[:2], s.getsockname()[:2], page.endswith(b'example.com\\n')]))\n"
        )
        command = [PYTHON, "-c", code, address, str(v6only)]
        done = user_host.graft(["--proxy", SOCKS], *command)
        assert done.status == 0, done.stderr
        peer, own, came = json.loads(done.stdout)
        assert (peer, came) == ([address, 80], True)
        if user_host.mode == "ptrace":
            assert own[0] == json.loads(user_host.run(*command).stdout)[1][0]


DESCRIPTORS = """
import ctypes, os, socket, sys
address, way = (sys.argv[1], 80), sys.argv[2]
fresh = socket.socket()
if way == "copied":
    sock = socket.socket(fileno=os.dup(os.dup2(fresh.fileno(), 100)))
elif way == "passed on":
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sock = fresh
elif way == "sent over a Unix socket":
    here, there = socket.socketpair(socket.AF_UNIX)
    if os.fork() == 0:
        socket.send_fds(here, [b"x"], [fresh.fileno()])
        os._exit(0)
    fresh.close()
    sock = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
elif way == "close_range":
    number = fresh.detach()
    ctypes.CDLL(None).syscall(436, number, number, 0)
    os.dup2(os.open("/dev/null", os.O_RDONLY), number)
    os.close(number)
    sock = socket.socket()
    assert sock.fileno() == number
else:  # unshare(CLONE_FILES): what another thread does to its own table is no matter to ours
    import threading
    def apart():
        assert ctypes.CDLL(None).syscall(272, 0x400) == 0
        os.close(fresh.fileno())
    thread = threading.Thread(target=apart)
    thread.start()
    thread.join()
    sock = fresh
sock.connect(address)
sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
sys.stdout.buffer.write(b"".join(iter(lambda: sock.recv(4096), b"")).partition(b"\\r\\n\\r\\n")[2])
assert sock.getpeername() == address
"""


@row("descriptors as the kernel has them: copied, passed on, sent over a Unix socket, `close_range`, `unshare`")
@pytest.mark.parametrize("way", ["copied", "passed on", "sent over a Unix socket", "close_range", "unshare"])
def test_descriptors(user_host: Host, way: str) -> None:
    done = user_host.graft(["--proxy", SOCKS], PYTHON, "-c", DESCRIPTORS, at.WEB, way)
    assert (done.status, done.stdout) == (0, PAGE), done.stderr
    assert done.one_tcp()["upstream"] == SOCKS


@row("the program ends with its tracer")
@ONLY_PTRACE
def test_the_program_ends_with_its_tracer(user_host: Host) -> None:
    with user_host.started([], "sh", "-c", "sleep 100 & echo ready; wait") as process:
        assert read_line(process) == "ready"
        below = descendants(process.pid)
        (shell,) = [pid for pid in below if command_of(pid)[:2] == ["sh", "-c"]]
        traced = [shell, *descendants(shell)]
        (tracer,) = [pid for pid in below if pid not in traced]
        assert len(traced) == 2
        os.kill(tracer, signal.SIGKILL)
        assert process.wait(timeout=20) == 125
        assert eventually(lambda: [state_of(pid) for pid in traced] == [None, None])


STRICT = """
import ctypes, errno, json, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    return 0 if libc.syscall(*numbers) >= 0 else ctypes.get_errno()
def sock(*how):
    try:
        socket.socket(*how).close()
    except OSError as error:
        return error.errno
    return 0
told = {
    "io_uring": call(425, 1, ctypes.create_string_buffer(120)),
    "raw": sock(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": sock(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": sock(40, socket.SOCK_STREAM),
    "tcp": sock(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK),
    "udp": sock(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": sock(socket.AF_UNIX, socket.SOCK_STREAM),
    "user namespace": call(272, 0x10000000),
}
print(json.dumps({name: errno.errorcode.get(number, "") for name, number in told.items()}))
"""


@row("`--strict`: io_uring, raw sockets, new user namespaces")
@ONLY_PTRACE
def test_strict(root_host: Host) -> None:
    """As root, whom nothing else would deny them."""
    plain, strict = (
        json.loads(root_host.graft(options, PYTHON, "-c", STRICT).stdout) for options in ([], ["--strict"])
    )
    denied = ("io_uring", "raw", "packet", "vsock", "user namespace")
    assert {name: strict[name] for name in denied} == dict.fromkeys(denied, "EPERM")
    assert [strict[name] for name in ("tcp", "udp", "unix")] == ["", "", ""]
    assert [plain[name] for name in ("raw", "packet", "user namespace", "tcp")] == ["", "", "", ""]


@row("one record per flow, with its process", "rules by host, address and port")
def test_who_did_it_and_whether_he_may(user_host: Host) -> None:
    done = user_host.graft(
        ["--deny", f"{at.OTHER}:80"], "sh", "-c", f"curl -sS {WEB_URL}; curl -sS {OTHER_URL}; true"
    )
    assert (done.status, done.stdout) == (0, PAGE)
    allowed, denied = done.tcp()
    assert (allowed["verdict"], denied["verdict"], denied["rule"]) == ("allow", "deny", f"--deny {at.OTHER}:80")
    for flow, url in ((allowed, WEB_URL), (denied, OTHER_URL)):
        assert flow["process"]["argv"] == ["curl", "-sS", url]
        assert flow["attribution"]["method"] == ("ptrace" if user_host.mode == "ptrace" else "sock_diag")


def test_every_row_of_the_readme_that_is_ours_is_tried_here() -> None:
    """Between the table's head and its end: a row that says "yes" for us is one of ``rows``, and the other way."""
    root = Path(__file__).parents[2]
    head = "| feature | netns-graft | graftcp 0.8 |\n"
    table = (root / "README.md").read_text().partition(head)[2].partition("\n\n")[0]
    lines = [line.removeprefix("| ").split(" | ") for line in table.splitlines()[1:]]
    ours = {name: said for name, said, *_ in lines if said.startswith("yes")}
    elsewhere = {name: found[1] for name, said in ours.items() if (found := re.search(r"\((tests/[^)]+)\)", said))}
    assert set(ours) - set(elsewhere) == rows
    assert all((root / path).exists() for path in elsewhere.values())
