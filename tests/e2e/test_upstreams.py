"""Each kind of proxy with right, wrong and missing authentication, towards IPv4, IPv6 and a name; chains; failover."""

import os
import time

import pytest
from lab import addresses as at
from lab.grafting import Host, command_of, descendants, read_line
from lab.server_files import PAGE

RIGHT, WRONG, MISSING = f"{at.USER}:{at.PASSWORD}@", f"{at.USER}:not-it@", ""
TARGETS = {"IPv4": at.WEB, "IPv6": f"[{at.WEB6}]", "name": "example.com"}
GUARDED = {
    "microsocks": ("socks5h", at.SOCKS_AUTH),
    "microsocks, addresses": ("socks5", at.SOCKS_AUTH),
    "dante": ("socks5h", at.DANTE_AUTH),
    "tinyproxy": ("http", at.TINYPROXY_AUTH),
}
OPEN = {
    "microsocks": ("socks5h", at.SOCKS),
    "microsocks, addresses": ("socks5", at.SOCKS),
    "dante": ("socks5h", at.DANTE),
    "tinyproxy": ("http", at.TINYPROXY),
}


def url_of(scheme: str, port: int, credentials: str = "", address: str = at.PROXY) -> str:
    return f"{scheme}://{credentials}{f'[{address}]' if ':' in address else address}:{port}"


def curl(host: Host, *options: str, target: str = "example.com", port: int = 80, **more: object):
    return host.graft(list(options), "curl", "-sS", f"http://{target}:{port}/", **more)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("scheme", "port"), GUARDED.values(), ids=GUARDED)
class TestGuarded:
    def test_right(self, host: Host, scheme: str, port: int, target: str) -> None:
        done = curl(host, "--proxy", url_of(scheme, port, RIGHT), target=target)
        assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")
        flow = next(flow for flow in done.tcp() if flow["outcome"] == "ok")
        assert flow["upstream"] == url_of(scheme, port)

    @pytest.mark.parametrize("credentials", [WRONG, MISSING], ids=["wrong", "missing"])
    def test_not_right(self, user_host: Host, scheme: str, port: int, target: str, credentials: str) -> None:
        done = curl(user_host, "--proxy", url_of(scheme, port, credentials), target=target)
        assert done.status == 7, done  # could not connect
        assert done.tcp()
        for flow in done.tcp():
            assert flow["outcome"] == "upstream-auth"
            assert flow["verdict"] == "allow"
            assert flow["upstream"] == url_of(scheme, port)
            assert flow["error"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("scheme", "port"), OPEN.values(), ids=OPEN)
def test_open(user_host: Host, scheme: str, port: int, target: str) -> None:
    done = curl(user_host, "--proxy", url_of(scheme, port), target=target)
    assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")


@pytest.mark.parametrize(("scheme", "port"), OPEN.values(), ids=OPEN)
def test_proxy_over_ipv6(user_host: Host, scheme: str, port: int) -> None:
    done = curl(user_host, "--proxy", url_of(scheme, port, address=at.PROXY6))
    assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")


@pytest.mark.parametrize("name", ["socks.lab.example", "v6proxy.lab.example", "socks"])
def test_proxy_by_name(user_host: Host, name: str) -> None:
    """A proxy's own name is the host's affair: resolved there, search domain and all."""
    done = curl(user_host, "--proxy", f"socks5h://{name}:{at.SOCKS}")
    assert (done.status, done.stdout) == (0, PAGE), done.stderr
    assert done.one_tcp()["upstream"] == f"socks5h://{name}:{at.SOCKS}"


class TestSocks4a:
    @pytest.mark.parametrize("target", [at.WEB, "example.com"], ids=["IPv4", "name"])
    def test_right(self, host: Host, target: str) -> None:
        began = time.time()
        done = curl(host, "--proxy", f"socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}", target=target)
        assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")
        asked = {event["asked"] for event in host.lab.events("socks4a", began) if "asked" in event}
        assert asked == {target}  # a name goes to the proxy as a name

    @pytest.mark.parametrize("credentials", ["somebody@", ""], ids=["wrong", "missing"])
    def test_not_right(self, user_host: Host, credentials: str) -> None:
        done = curl(user_host, "--proxy", f"socks4a://{credentials}{at.PROXY}:{at.SOCKS4}", target=at.WEB)
        assert done.status == 7
        assert done.one_tcp()["outcome"] == "upstream-auth"

    def test_cannot_carry_ipv6(self, user_host: Host) -> None:
        done = curl(
            user_host, "--proxy", f"socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}", target=f"[{at.WEB6}]"
        )
        assert done.status == 7
        assert done.one_tcp()["outcome"] in ("upstream-failed", "unreachable")


class TestDestinations:
    """What the proxy says of the destination is what the program gets."""

    @pytest.mark.parametrize("proxy", ["direct", url_of("socks5h", at.SOCKS), url_of("socks5", at.DANTE)])
    def test_closed_port(self, host: Host, proxy: str) -> None:
        done = curl(host, "--proxy", proxy, target=at.WEB, port=at.CLOSED)
        assert done.status == 7
        assert done.seconds < 5
        assert done.one_tcp()["outcome"] == "refused"

    def test_closed_port_behind_connect(self, user_host: Host) -> None:
        """CONNECT has no word for it: a 5xx is all that comes."""
        done = curl(user_host, "--proxy", url_of("http", at.TINYPROXY), target=at.WEB, port=at.CLOSED)
        assert done.status == 7
        assert done.one_tcp()["outcome"] in ("upstream-failed", "refused")

    @pytest.mark.parametrize("proxy", ["direct", url_of("socks5h", at.SOCKS), url_of("http", at.TINYPROXY)])
    def test_unreachable(self, user_host: Host, proxy: str) -> None:
        done = curl(user_host, "--proxy", proxy, target=at.UNREACHABLE)
        assert done.status == 7
        assert done.one_tcp()["outcome"] in (
            "unreachable",
            *(() if proxy == "direct" else ("upstream-failed",)),
        )

    @pytest.mark.parametrize("proxy", [url_of("socks5h", at.SOCKS), url_of("http", at.TINYPROXY)])
    def test_no_such_name(self, user_host: Host, proxy: str) -> None:
        """Synthetic DNS answers every name; that there is none shows when it is dialled."""
        done = curl(user_host, "--proxy", proxy, target="no-such-name.example.com")
        assert done.status == 7
        assert {flow["outcome"] for flow in done.tcp()} <= {"unreachable", "upstream-failed"}


class TestChains:
    def test_two(self, host: Host) -> None:
        first, second = url_of("socks5h", at.SOCKS_AUTH, RIGHT), url_of("http", at.TINYPROXY_AUTH, RIGHT)
        done = curl(host, "--proxy", f"{first},{second}")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        label = done.one_tcp()["upstream"]
        assert label == f"{url_of('socks5h', at.SOCKS_AUTH)},{url_of('http', at.TINYPROXY_AUTH)}"

    def test_three_of_three_kinds(self, user_host: Host) -> None:
        """The first one is on the host's loopback, and only by it is the next one reached."""
        chain = [
            "socks5h://127.0.0.1:1080",
            url_of("http", at.TINYPROXY),
            url_of("socks5", at.DANTE_AUTH, RIGHT),
        ]
        done = curl(user_host, "--proxy", ",".join(chain), target=at.WEB)
        assert (done.status, done.stdout) == (0, PAGE), done.stderr

    def test_the_order_is_kept(self, user_host: Host) -> None:
        """The last one is seen at the destination's end of the chain: it is the one to be told the name."""
        began = time.time()
        chain = f"{url_of('http', at.TINYPROXY)},socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}"
        done = curl(user_host, "--proxy", chain)
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        events = [event for event in user_host.lab.events("socks4a", began) if "asked" in event]
        assert {event["asked"] for event in events} == {"example.com"}

    def test_wrong_password_at_the_second(self, user_host: Host) -> None:
        done = curl(
            user_host, "--proxy", f"{url_of('socks5h', at.SOCKS)},{url_of('http', at.TINYPROXY_AUTH, WRONG)}"
        )
        assert done.status == 7
        assert {flow["outcome"] for flow in done.tcp()} == {"upstream-auth"}

    def test_dead_second(self, user_host: Host) -> None:
        done = curl(user_host, "--proxy", f"{url_of('socks5h', at.SOCKS)},{url_of('http', at.CLOSED)}")
        assert done.status == 7
        assert {flow["outcome"] for flow in done.tcp()} == {"upstream-failed"}


class TestFailover:
    @pytest.mark.parametrize("dead", [url_of("socks5h", at.CLOSED), url_of("http", at.RESET_AT_ONCE)])
    def test_the_next_one_serves(self, host: Host, dead: str) -> None:
        done = curl(host, "--proxy", dead, "--proxy", url_of("socks5h", at.SOCKS))
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        assert done.one_tcp()["upstream"] == url_of("socks5h", at.SOCKS)

    def test_all_dead(self, user_host: Host) -> None:
        done = curl(user_host, "--proxy", url_of("socks5h", at.CLOSED), "--proxy", url_of("http", at.CLOSED))
        assert done.status == 7
        assert {flow["outcome"] for flow in done.tcp()} == {"upstream-failed"}

    def test_a_dead_one_is_not_asked_each_time(self, user_host: Host) -> None:
        """Ten connections in a row, with a proxy in front that is silent: it costs its time limit once."""
        silent, live = url_of("socks5h", at.SOCKS, address=at.BLACKHOLE), url_of("socks5h", at.SOCKS)
        done = user_host.graft(
            ["--proxy", silent, "--proxy", live],
            "sh", "-c", f"for n in 1 2 3 4 5 6 7 8 9 10; do curl -sS http://{at.WEB}/ || exit; done", timeout=90,
        )  # fmt: skip
        assert (done.status, done.stdout) == (0, PAGE * 10), done.stderr
        slow = [flow for flow in done.tcp() if flow["duration"] > 1]
        assert len(slow) <= 1

    def test_a_refused_destination_is_no_reason_for_the_next(self, user_host: Host) -> None:
        """The proxy is well; what it says of the destination stands."""
        done = curl(
            user_host,
            "--proxy",
            url_of("socks5h", at.SOCKS),
            "--proxy",
            "direct",
            target=at.WEB,
            port=at.CLOSED,
        )
        flow = done.one_tcp()
        assert (flow["outcome"], flow["upstream"]) == ("refused", url_of("socks5h", at.SOCKS))


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_a_proxy_that_hangs(user_host: Host, scheme: str) -> None:
    """It takes the connection, and never says a word."""
    done = curl(user_host, "--proxy", url_of(scheme, at.HOLD), target=at.WEB, timeout=90)
    assert done.status in (7, 28)
    assert done.one_tcp()["outcome"] in ("timeout", "upstream-failed")


class TestSecrets:
    def check(self, host: Host, options: list[str], env: dict[str, str]) -> None:
        """Works with them, and shows them to nobody."""
        flows = host.place / "secret-flows.jsonl"
        command = f"env; echo ready; read go; curl -sS http://{at.WEB}/; echo"
        with host.started(["--flows", str(flows), *options], "sh", "-c", command, env=env) as process:
            environment = []
            while (line := read_line(process)) != "ready":
                environment.append(line)
            ours = [process.pid, *descendants(process.pid)]
            shown = [" ".join(command_of(pid)) for pid in ours]
            out, err = process.communicate(b"go\n", timeout=30)
        assert process.returncode == 0, err
        assert out.startswith(PAGE)
        secret = at.PASSWORD
        assert len(shown) >= 2
        assert not [line for line in shown if secret in line]
        assert not [line for line in environment if secret in line or "NETNS_GRAFT_PROXY_" in line]
        assert secret not in err.decode()
        assert secret not in flows.read_text()
        for directory in (host.identity.home, host.identity.runtime_dir):
            for root, _, files in os.walk(directory):
                for name in files:
                    with open(os.path.join(root, name), "rb") as file:
                        assert secret.encode() not in file.read(), name

    def test_in_the_url(self, host: Host) -> None:
        self.check(host, ["--proxy", url_of("socks5h", at.SOCKS_AUTH, RIGHT)], {})

    def test_in_the_environment(self, host: Host) -> None:
        self.check(
            host, ["--proxy", url_of("socks5h", at.SOCKS_AUTH)],
            {"NETNS_GRAFT_PROXY_USERNAME": at.USER, "NETNS_GRAFT_PROXY_PASSWORD": at.PASSWORD},
        )  # fmt: skip

    def test_in_a_file(self, host: Host) -> None:
        file = host.script("corp.secret", f"{at.USER}:{at.PASSWORD}\n", mode=0o600)
        self.check(host, ["--proxy", url_of("http", at.TINYPROXY_AUTH), "--proxy-credentials", file], {})

    def test_odd_characters(self, user_host: Host) -> None:
        """A wrong password that is hard to quote: sent as it is, refused as it should be, and shown nowhere."""
        done = curl(
            user_host, "--proxy", url_of("socks5h", at.SOCKS_AUTH, "gr%40ft:p%3Aa%2Fss%25@"), target=at.WEB
        )
        assert done.one_tcp()["outcome"] == "upstream-auth"
        assert "p:a/ss%" not in str(done.flows) + done.stderr
        assert "p%3Aa" not in str(done.flows) + done.stderr
