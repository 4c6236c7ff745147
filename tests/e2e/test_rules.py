"""Quick rules, the default, and what nobody reaches unless a rule names it."""

import json
import re
from pathlib import Path

import pytest
from lab import addresses as at
from lab.grafting import Grafted, Host
from lab.server_files import PAGE
from lab.sniffer import Sniffer

AT_ONCE = 1.0  # seconds: far below any time limit, far above what a busy machine needs
REFUSALS = {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM"}


def connect(host: Host, programs: Path, options: list[str], address: str, port: int) -> tuple[Grafted, dict]:
    done = host.graft(options, "/usr/bin/python3", str(programs / "connect.py"), address, str(port))
    return done, json.loads(done.stdout)


def assert_denied(done: Grafted) -> None:
    assert done.tcp(), "a denied flow is recorded like any other"
    for flow in done.tcp():
        assert (flow["verdict"], flow["outcome"]) == ("deny", "denied")
        assert flow["bytes_sent"] == flow["bytes_received"] == 0
        assert flow["process"] is not None


@pytest.mark.parametrize("pattern", [
    "denied.example.org", "denied.example.org:80", "*.example.org", "*.example.org:80", at.DENIED, f"{at.DENIED}:80",
    "198.51.100.64/29", "198.51.100.64/29:80", ":80",
])  # fmt: skip
def test_denied_at_once(user_host: Host, programs: Path, pattern: str) -> None:
    by_name = "example" in pattern
    target = "denied.example.org" if by_name else at.DENIED
    with Sniffer(user_host.lab) as sniffer:
        done, seen = connect(user_host, programs, ["--deny", pattern], target, 80)
        assert [frame for frame in sniffer.seen() if frame.destination == at.DENIED] == []
    assert seen["error"] in REFUSALS
    assert seen["seconds"] < AT_ONCE
    assert_denied(done)
    assert done.one_tcp()["rule"] != "default"


@pytest.mark.parametrize("pattern", [
    "denied.example.org:443", "*.denied.example.org", "example.org", f"{at.DENIED}:443", "198.51.100.68/31", ":81",
])  # fmt: skip
def test_what_a_rule_does_not_name_goes_on(user_host: Host, pattern: str) -> None:
    url = f"http://{'denied.example.org' if 'example' in pattern else at.DENIED}/"
    done = user_host.graft(["--deny", pattern], "curl", "-sS", url)
    assert (done.status, done.stdout) == (0, PAGE), done.stderr


def test_denied_as_root_and_as_user(host: Host, programs: Path) -> None:
    done, seen = connect(host, programs, ["--deny", f"{at.DENIED}:80"], at.DENIED, 80)
    assert seen["error"] in REFUSALS
    assert seen["seconds"] < AT_ONCE
    assert_denied(done)


def test_denied_over_ipv6(host: Host, programs: Path) -> None:
    done, seen = connect(host, programs, ["--deny", f"[{at.WEB6}]:80"], at.WEB6, 80)
    assert seen["error"] in REFUSALS
    assert seen["seconds"] < AT_ONCE
    assert_denied(done)


@pytest.mark.route
def test_denied_with_accept_first(user_host: Host) -> None:
    """The handshake is over before the verdict: the connection ends at once, and nothing was sent."""
    with Sniffer(user_host.lab) as sniffer:
        done = user_host.graft(["--accept-first", "--deny", ":80"], "curl", "-sS", f"http://{at.WEB}/")
        assert [frame for frame in sniffer.seen() if frame.destination == at.WEB] == []
    assert done.status in (7, 52, 56)
    assert done.one_tcp()["outcome"] == "denied"


class TestDefaultDeny:
    def test_nothing_passes(self, host: Host, programs: Path) -> None:
        done, seen = connect(host, programs, ["--default", "deny"], at.WEB, 80)
        assert seen["error"] in REFUSALS
        assert_denied(done)
        assert done.one_tcp()["rule"] == "default"

    @pytest.mark.parametrize(("pattern", "url"), [
        ("example.com", "http://example.com/"),
        ("example.com:80", "http://example.com/"),
        ("*.example.com", "http://www.example.com/"),
        (at.WEB, f"http://{at.WEB}/"),
        ("93.184.216.0/24:80", f"http://{at.WEB}/"),
        (f"[{at.WEB6}]:80", f"http://[{at.WEB6}]/"),
        ("2606:2800::/32", f"http://[{at.WEB6}]/"),
        (":80", f"http://{at.WEB}/"),
    ])  # fmt: skip
    def test_but_what_is_allowed(self, user_host: Host, pattern: str, url: str) -> None:
        done = user_host.graft(["--default", "deny", "--allow", pattern], "curl", "-sS", url)
        assert (done.status, done.stdout) == (0, PAGE), done.stderr

    def test_a_name_is_not_its_address(self, user_host: Host) -> None:
        """Allowed by name: the bare address, which others may share, is not."""
        done = user_host.graft(
            ["--default", "deny", "--allow", "example.com"], "curl", "-sS", f"http://{at.WEB}/"
        )
        assert done.status == 7
        assert_denied(done)

    def test_another_name_with_the_same_address(self, user_host: Host) -> None:
        done = user_host.graft(
            ["--default", "deny", "--allow", "example.com"],
            "sh", "-c", "curl -sS http://example.com/ && curl -sS http://v4only.example.com/",
        )  # fmt: skip
        assert (done.status, done.stdout) == (7, PAGE)
        outcomes = {flow["destination"]["host"]: flow["outcome"] for flow in done.tcp()}
        assert outcomes == {"example.com": "ok", "v4only.example.com": "denied"}

    def test_allowed_by_way_of_a_proxy(self, user_host: Host) -> None:
        """The proxy is how, and not whether: it needs no rule of its own, and gives none."""
        done = user_host.graft(
            ["--default", "deny", "--allow", "example.com", "--proxy", "socks5h://127.0.0.1:1080"],
            "sh", "-c", "curl -sS http://example.com/; curl -sS http://other.example.net/",
        )  # fmt: skip
        assert done.stdout == PAGE
        outcomes = {flow["destination"]["host"]: flow["outcome"] for flow in done.tcp()}
        assert outcomes == {"example.com": "ok", "other.example.net": "denied"}


def test_the_first_match_wins(user_host: Host) -> None:
    """In the order in which they were written, whatever they are."""
    both = ["--allow", at.WEB, "--deny", ":80"]
    done = user_host.graft(both, "curl", "-sS", f"http://{at.WEB}/")
    assert done.stdout == PAGE
    done = user_host.graft([*both[2:], *both[:2]], "curl", "-sS", f"http://{at.WEB}/")
    assert done.status == 7


SAFE = {
    "the host's address": (at.HOST, at.HOST_PAGE),
    "the host's IPv6 address": (at.HOST6, at.HOST_PAGE),
    "the host's address in IPv6": (f"::ffff:{at.HOST}", at.HOST_PAGE),
    "metadata": (at.METADATA, 80),
    "link-local": ("169.254.7.7", 80),
    "the host's loopback": ("host.containers.internal", at.HOST_LOOPBACK_PAGE),
    "the host's page by the same name": ("host.containers.internal", at.HOST_PAGE),
}


class TestSafeByDefault:
    @pytest.mark.parametrize(("address", "port"), SAFE.values(), ids=SAFE)
    @pytest.mark.parametrize("more", [[], ["--proxy", "socks5h://127.0.0.1:1080"]], ids=["direct", "socks5h"])
    def test_denied(self, user_host: Host, programs: Path, address: str, port: int, more: list[str]) -> None:
        # With a rule by name, so that names are known and host.containers.internal is one of them.
        done, seen = connect(user_host, programs, ["--allow", "example.com", *more], address, port)
        assert seen["error"] in REFUSALS
        assert seen["seconds"] < AT_ONCE
        assert_denied(done)

    def test_they_are_there(self, user_host: Host) -> None:
        """Not grafted, every one of them answers, so that the denials above mean something."""
        for url in (
            f"{at.HOST}:{at.HOST_PAGE}",
            f"[{at.HOST6}]:{at.HOST_PAGE}",
            f"127.0.0.1:{at.HOST_LOOPBACK_PAGE}",
        ):
            assert user_host.run("curl", "-sS", f"http://{url}/").stdout.startswith(b"hello from ")
        assert user_host.run("curl", "-sS", f"http://{at.METADATA}/").stdout == PAGE

    @pytest.mark.parametrize("name", ["rebind.example.org", "metadata.example.org", "labhost"])
    @pytest.mark.route
    def test_a_name_that_leads_there(self, user_host: Host, name: str) -> None:
        """Whatever a name resolves to at dialling time is judged again."""
        port = {
            "rebind.example.org": at.HOST_LOOPBACK_PAGE,
            "metadata.example.org": 80,
            "labhost": at.HOST_PAGE,
        }[name]
        done = user_host.graft(["--dns", "synthetic"], "curl", "-sS", f"http://{name}:{port}/")
        assert done.status == 7
        assert b"hello" not in done.stdout
        assert {flow["outcome"] for flow in done.tcp()} == {"denied"}

    def test_a_name_rule_does_not_open_them(self, user_host: Host) -> None:
        """The name is allowed, and its owner lets it lead to the metadata service."""
        done = user_host.graft(
            ["--default", "deny", "--allow", "metadata.example.org"],
            "curl",
            "-sS",
            "http://metadata.example.org/",
        )
        assert (done.status, done.stdout) == (7, b"")
        assert {flow["outcome"] for flow in done.tcp()} == {"denied"}

    def test_a_port_rule_does_not_open_them(self, user_host: Host) -> None:
        done = user_host.graft(["--allow", ":80"], "curl", "-sS", f"http://{at.METADATA}/")
        assert done.status == 7
        assert_denied(done)

    @pytest.mark.route
    def test_the_workloads_own_loopback_is_its_own(self, user_host: Host) -> None:
        """127.0.0.1 inside is not the host's, and needs no verdict."""
        script = (
            "import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname());"
            "p, _ = s.accept(); c.sendall(b'hi'); print(p.recv(2).decode())"
        )
        done = user_host.graft(["--default", "deny"], "/usr/bin/python3", "-c", script)
        assert (done.status, done.stdout, done.flows) == (0, b"hi\n", [])
        done = user_host.graft([], "curl", "-sS", f"http://127.0.0.1:{at.HOST_LOOPBACK_PAGE}/")
        assert (done.status, done.flows) == (7, [])


class TestNamedOnPurpose:
    def test_one_service_on_the_hosts_loopback(self, host: Host) -> None:
        name = "host.containers.internal"
        done = host.graft(
            ["--allow", f"{name}:{at.HOST_LOOPBACK_PAGE}"],
            "sh", "-c", f"curl -sS http://{name}:{at.HOST_LOOPBACK_PAGE}/; curl -sS http://{name}:{at.HOST_PAGE}/",
        )  # fmt: skip
        assert done.status == 7
        assert done.stdout == b"hello from 127.0.0.1\n"
        outcomes = {flow["destination"]["port"]: flow["outcome"] for flow in done.tcp()}
        assert outcomes == {at.HOST_LOOPBACK_PAGE: "ok", at.HOST_PAGE: "denied"}

    def test_the_hosts_own_address(self, user_host: Host) -> None:
        url = f"http://{at.HOST}:{at.HOST_PAGE}/"
        done = user_host.graft(["--allow", f"{at.HOST}:{at.HOST_PAGE}"], "curl", "-sS", url)
        assert (done.status, done.stdout) == (0, f"hello from {at.HOST}\n".encode()), done.stderr

    def test_metadata(self, user_host: Host) -> None:
        done = user_host.graft(["--allow", f"{at.METADATA}:80"], "curl", "-sS", f"http://{at.METADATA}/")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr


def test_the_record_names_the_rule(user_host: Host) -> None:
    done = user_host.graft(["--deny", f"{at.DENIED}:80"], "curl", "-sS", f"http://{at.DENIED}/")
    assert re.search(re.escape(at.DENIED), done.one_tcp()["rule"])
