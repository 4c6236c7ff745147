"""DNS as a program meets it: whomever it asks, the forwarder answers."""

import ipaddress
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lab import addresses as at
from lab.grafting import Grafted, Host
from lab.server_files import PAGE

SYNTHETIC4, SYNTHETIC6 = ipaddress.ip_network("198.18.0.0/15"), ipaddress.ip_network("fd6e:6574:6772::/48")
BOTH = pytest.mark.parametrize("transport", ["udp", "tcp"])


@pytest.fixture
def ask(programs: Path) -> Any:
    def go(
        host: Host, options: list[str], server: str, transport: str, name: str, kind: str, *payload: str
    ) -> Any:
        done = host.graft(
            options, sys.executable, str(programs / "ask.py"), server, transport, name, kind, *payload
        )
        assert done.status == 0, done.stderr
        return json.loads(done.stdout)

    return go


def resolve(
    host: Host, options: Sequence[str], *names: str, family: str = "4", **more: Any
) -> tuple[list[list[str]], Grafted]:
    """What the C library makes of names, in one graft: the addresses of each."""
    script = (
        "import json, socket, sys\n"
        "def look(name):\n"
        "    family = {'4': socket.AF_INET, '6': socket.AF_INET6, 'any': 0}[sys.argv[1]]\n"
        "    try:\n"
        "        return sorted({a[4][0] for a in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)})\n"
        "    except socket.gaierror as error:\n"
        "        return [error.errno]\n"
        "print(json.dumps([look(name) for name in sys.argv[2:]]))\n"
    )
    done = host.graft(options, "/usr/bin/python3", "-c", script, family, *names, **more)
    assert done.status == 0, done.stderr
    return json.loads(done.stdout), done


NO_SUCH_NAME, NO_ADDRESS = -2, -5  # of getaddrinfo


class TestForward:
    def test_as_on_the_host(self, host: Host) -> None:
        """The same answers as without a graft: from DNS, by the search domain, from /etc/hosts."""
        names = {
            "example.com": [at.WEB], "www.example.com": [at.WEB], "server": [at.WEB], "labhost": [at.HOST],
            "only-in-hosts.example": [at.OTHER], "no-such-name.example.com": [NO_SUCH_NAME],
            "v6only.example.com": [NO_ADDRESS],
        }  # fmt: skip
        found, _ = resolve(host, ["--dns", "forward"], *names)
        assert dict(zip(names, found, strict=True)) == names

    def test_ipv6(self, user_host: Host) -> None:
        found, _ = resolve(user_host, [], "example.com", "v4only.example.com", family="6")
        assert found == [[at.WEB6], [NO_ADDRESS]]

    def test_questions_are_recorded(self, user_host: Host) -> None:
        _, done = resolve(user_host, [], "example.com", "denied.example.org")
        assert done.names() == ["example.com", "denied.example.org"]
        flow = done.flows[0]
        assert flow["protocol"] == "dns"
        assert flow["process"]["exe"] == "/usr/bin/python3.11" or flow["process"]["exe"].startswith(
            "/usr/bin/python3"
        )
        assert flow["process"]["argv"][-1] == "denied.example.org"
        assert (flow["verdict"], flow["outcome"]) == ("allow", "ok")

    @BOTH
    @pytest.mark.parametrize("server", ["8.8.8.8", "203.0.113.77", "2001:db8:dead::53"])
    def test_whatever_resolver_is_asked(self, user_host: Host, ask: Any, server: str, transport: str) -> None:
        """Its own choice of resolver is no way round: the host's resolvers answer for it."""
        began = time.time()
        reply = ask(user_host, [], server, transport, "example.com", "A")
        assert (reply["rcode"], reply["answers"]) == ("NOERROR", [at.WEB])
        questions = user_host.lab.questions(began, server=None)
        assert {question["server"] for question in questions} == {at.DNS}

    @BOTH
    def test_the_hosts_file_by_a_question(self, user_host: Host, ask: Any, transport: str) -> None:
        """A program that asks without reading /etc/hosts itself gets what is in there all the same."""
        reply = ask(user_host, [], at.DNS, transport, "only-in-hosts.example", "A")
        assert (reply["rcode"], reply["answers"]) == ("NOERROR", [at.OTHER])

    @BOTH
    def test_whatever_type_is_asked(self, user_host: Host, ask: Any, transport: str) -> None:
        assert ask(user_host, [], at.DNS, transport, "example.com", "MX")["answers"] == [
            "10 mail.example.com."
        ]
        assert ask(user_host, [], at.DNS, transport, "www.example.com", "A")["answers"] == [
            "example.com.",
            at.WEB,
        ]
        assert ask(user_host, [], at.DNS, transport, "no.example.com", "A")["rcode"] == "NXDOMAIN"

    def test_a_big_answer(self, user_host: Host, ask: Any) -> None:
        big = at.ZONE["big.example.com"]["TXT"]
        small = ask(user_host, [], at.DNS, "udp", "big.example.com", "TXT")
        assert (small["truncated"], small["answers"]) == (True, [])
        assert sorted(ask(user_host, [], at.DNS, "tcp", "big.example.com", "TXT")["answers"]) == sorted(big)
        reply = ask(user_host, [], at.DNS, "udp", "big.example.com", "TXT", "8192")  # there is room for it
        assert (reply["truncated"], sorted(reply["answers"])) == (False, sorted(big))
        assert ask(user_host, [], at.DNS, "udp", "big.example.com", "TXT", "1232")["truncated"]

    def test_a_resolver_on_the_hosts_loopback(self, host: Host) -> None:
        """As systemd-resolved writes it. Inside, 127.0.0.53 would be the workload's own."""
        conf = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lab.example\n"
        found, _ = resolve(host, [], "example.com", "server", resolv_conf=conf)
        assert found == [[at.WEB], [at.WEB]]

    @pytest.mark.route
    def test_a_loopback_resolver_asked_by_hand(self, user_host: Host) -> None:
        """Nobody listens there inside: that is told at once."""
        done = user_host.graft([], "busybox", "nslookup", "example.com", "127.0.0.53", timeout=30)
        assert done.status != 0
        assert done.flows == []

    def test_the_second_resolver_when_the_first_is_dead(self, user_host: Host) -> None:
        conf = f"nameserver {at.BLACKHOLE}\nnameserver {at.DNS}\noptions timeout:1\n"
        found, _ = resolve(user_host, [], "example.com", resolv_conf=conf)
        assert found == [[at.WEB]]

    def test_no_resolver_at_all(self, user_host: Host) -> None:
        """It fails, and does not hang for ever; addresses still work."""
        conf = f"nameserver {at.BLACKHOLE}\noptions timeout:1 attempts:1\n"
        done = user_host.graft(
            [],
            "sh",
            "-c",
            f"curl -sS http://example.com/; curl -sS http://{at.WEB}/",
            resolv_conf=conf,
            timeout=60,
        )
        assert (done.status, done.stdout) == (0, PAGE)
        assert "Could not resolve host" in done.stderr

    def test_busybox_nslookup(self, user_host: Host) -> None:
        done = user_host.graft([], "busybox", "nslookup", "example.com", "9.9.9.9")
        assert at.WEB.encode() in done.stdout

    def test_the_resolv_conf_inside(self, user_host: Host) -> None:
        """A file of the graft's own; outside, nothing changed."""
        done = user_host.graft([], "cat", "/etc/resolv.conf")
        assert b"nameserver " in done.stdout
        assert b"lab.example" in done.stdout  # what the user may rely on: the search domain
        assert user_host.run("cat", "/etc/resolv.conf").stdout == at.RESOLV_CONF.encode()


class TestSynthetic:
    OPTIONS = ("--dns", "synthetic")

    def test_an_address_of_its_own_for_each_name(self, host: Host) -> None:
        names = ["example.com", "www.example.com", "EXAMPLE.com", "example.com", "no-such-name.example.com"]
        found, _ = resolve(host, self.OPTIONS, *names)
        addresses = [answer[0] for answer in found]
        assert all(len(answer) == 1 and ipaddress.ip_address(answer[0]) in SYNTHETIC4 for answer in found)
        assert addresses[0] == addresses[2] == addresses[3]
        assert len(set(addresses)) == 3

    def test_ipv6(self, host: Host) -> None:
        found, _ = resolve(host, self.OPTIONS, "example.com", "v4only.example.com", family="6")
        assert all(ipaddress.ip_address(answer[0]) in SYNTHETIC6 for answer in found)
        assert found[0] != found[1]

    def test_nothing_is_asked_for_them(self, host: Host) -> None:
        began = time.time()
        resolve(host, self.OPTIONS, "example.com", "never-seen.example.net", family="any")
        assert host.lab.questions(began, server=None) == []

    @BOTH
    @pytest.mark.parametrize("kind", ["MX", "TXT", "HTTPS", "SRV", "PTR"])
    def test_other_types_have_no_data(self, user_host: Host, ask: Any, transport: str, kind: str) -> None:
        reply = ask(user_host, self.OPTIONS, "8.8.8.8", transport, "example.com", kind)
        assert (reply["rcode"], reply["answers"]) == ("NOERROR", [])

    @pytest.mark.parametrize("family", ["-4", "-6"])
    def test_dialled_by_name(self, host: Host, family: str) -> None:
        """Resolved on the host when it is dialled: the record has both."""
        done = host.graft(self.OPTIONS, "curl", "-sS", family, "http://example.com/")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        where = done.one_tcp()["destination"]
        assert ipaddress.ip_address(where["address"]) in (SYNTHETIC4 if family == "-4" else SYNTHETIC6)
        assert (where["host"], where["host_source"]) == ("example.com", "synthetic")
        assert where["resolved"] in (at.WEB, at.WEB6)

    def test_ipv6_only_behind_an_ipv4_synthetic_address(self, user_host: Host) -> None:
        done = user_host.graft(self.OPTIONS, "curl", "-sS", "-4", "http://v6only.example.com/")
        assert (done.status, done.stdout) == (0, PAGE), done.stderr
        assert done.one_tcp()["destination"]["resolved"] == at.WEB6

    def test_an_address_that_stands_for_no_name(self, user_host: Host) -> None:
        done = user_host.graft(self.OPTIONS, "curl", "-sS", "http://198.19.255.77/")
        assert done.status == 7
        assert done.one_tcp()["outcome"] in ("denied", "unreachable", "refused")

    def test_no_such_name_fails_at_connect(self, user_host: Host) -> None:
        done = user_host.graft(self.OPTIONS, "curl", "-sS", "http://no-such-name.example.com/")
        assert done.status == 7
        assert {flow["outcome"] for flow in done.tcp()} == {"unreachable"}


class TestChosen:
    """Synthetic when a rule names a host or a proxy takes names, else forward."""

    @pytest.mark.parametrize(("options", "synthetic"), [
        ([], False),
        (["--deny", at.DENIED], False),
        (["--deny", ":443"], False),
        (["--proxy", f"socks5://{at.PROXY}:{at.SOCKS}"], False),
        (["--deny", "denied.example.org"], True),
        (["--allow", "*.example.org:80"], True),
        (["--proxy", f"socks5h://{at.PROXY}:{at.SOCKS}"], True),
        (["--proxy", f"socks4a://{at.USER}@{at.PROXY}:{at.SOCKS4}"], True),
        (["--proxy", f"http://{at.PROXY}:{at.TINYPROXY}"], True),
        (["--dns", "forward", "--proxy", f"socks5h://{at.PROXY}:{at.SOCKS}"], False),
    ])  # fmt: skip
    def test_mode(self, user_host: Host, options: list[str], synthetic: bool) -> None:
        ((address,),), _ = resolve(user_host, options, "example.com")
        assert (ipaddress.ip_address(address) in SYNTHETIC4) == synthetic
        if not synthetic:
            assert address == at.WEB

    def test_forward_with_a_proxy_that_takes_names(self, user_host: Host) -> None:
        done = user_host.graft(
            ["--dns", "forward", "--proxy", f"socks5h://{at.PROXY}:{at.SOCKS}"],
            "curl",
            "-sS",
            "http://example.com/",
        )
        assert (done.status, done.stdout) == (0, PAGE), done.stderr

    def test_off(self, user_host: Host) -> None:
        began = time.time()
        done = user_host.graft(
            ["--dns", "off"],
            "sh",
            "-c",
            f"curl -sS http://{at.WEB}/; curl -sS -m 20 http://example.com/",
            timeout=60,
        )
        assert (done.status, done.stdout) == (6, PAGE)
        assert user_host.lab.questions(began, server=None) == []
