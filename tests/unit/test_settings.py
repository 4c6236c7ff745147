"""From options to what a forwarder works by: lists of addresses, resolvers, the host."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from netns_graft.cli.options import parse_exec
from netns_graft.dns.resolv_conf import Nameserver
from netns_graft.errors import ConfigError, UsageError
from netns_graft.settings import settings_for

SOCKS, SOCKS_H = "socks5://127.0.0.1:1080", "socks5h://127.0.0.1:1080"


def options(*words: str):
    return parse_exec([*words, "--", "true"], {})[0]


@contextmanager
def settings(*words: str):
    made = settings_for("exec", options(*words))
    try:
        yield made
    finally:
        made.upstreams.close()


@pytest.fixture
def addresses(tmp_path):
    path = tmp_path / "ips.txt"
    path.write_text("192.0.2.0/24\n2001:db8::/32\n")
    return str(path)


class TestLists:
    def test_what_is_listed(self, addresses):
        with settings("--proxy", SOCKS, "--direct-file", addresses) as made:
            assert not made.lists.by_proxy(bytes([192, 0, 2, 1])) and made.lists.by_proxy(bytes([192, 0, 3, 1]))
            assert made.upstream_text == f"{SOCKS}; direct for {addresses}"

    def test_names_are_forwarded_though_the_proxy_takes_them(self, addresses):
        with settings("--proxy", SOCKS_H) as made:
            assert (made.dns, bool(made.lists)) == ("synthetic", False)
        for option in ("--direct-file", "--proxy-file"):
            with settings("--proxy", SOCKS_H, option, addresses) as made:
                assert (made.dns, bool(made.lists)) == ("forward", True)
        with settings("--proxy", SOCKS_H, "--proxy-file", addresses, "--dns", "off") as made:
            assert made.dns == "off"

    @pytest.mark.parametrize("words", [["--dns", "synthetic"], ["--allow", "example.org"], ["--deny", "*.example.org"]])
    def test_names_with_addresses_of_their_own_are_refused_beside_a_list(self, addresses, words):
        with pytest.raises(UsageError, match="--direct-file goes by real addresses") as caught:
            settings_for("exec", options("--proxy", SOCKS, "--direct-file", addresses, *words))
        assert caught.value.hint

    def test_a_list_without_a_proxy_would_do_nothing(self, addresses):
        for words in ([], ["--proxy", "direct"]):
            with pytest.raises(UsageError, match="--proxy-file: there is no proxy"):
                settings_for("exec", options(*words, "--proxy-file", addresses))
        with settings("--select-proxy-mode", "direct", "--proxy-file", addresses) as made:
            assert made.upstreams.is_direct

    def test_a_file_that_cannot_be_read(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--direct-file: cannot read .*: No such file"):
            settings_for("exec", options("--proxy", SOCKS, "--direct-file", str(tmp_path / "none")))
        binary = tmp_path / "binary"
        binary.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="no text"):
            settings_for("exec", options("--proxy", SOCKS, "--proxy-file", str(binary)))

    def test_a_wrong_line_is_told_with_file_and_line(self, tmp_path):
        path = tmp_path / "ips.txt"
        path.write_text("192.0.2.1\nexample.org\n")
        with pytest.raises(ConfigError) as caught:
            settings_for("exec", options("--proxy", SOCKS, "--direct-file", str(path)))
        assert str(caught.value) == f"{path}:2: 'example.org' is neither an address nor a CIDR"


class TestDnsServer:
    @pytest.mark.parametrize(
        ("text", "server"),
        [
            ("1.1.1.1", ("1.1.1.1", 53)),
            ("1.1.1.1:5353", ("1.1.1.1", 5353)),
            ("2620:fe::fe", ("2620:fe::fe", 53)),
            ("[2620:fe::fe]", ("2620:fe::fe", 53)),
            ("[2620:fe::fe]:5353", ("2620:fe::fe", 5353)),
            ("dns.example.org", ("dns.example.org", 53)),
        ],
    )
    def test_is_asked_by_proxy(self, text, server):
        with settings("--proxy", SOCKS_H, "--dns-server", text) as made:
            assert made.resolvers.nameservers == (Nameserver(*server),)
            assert made.resolvers_by_proxy and made.dns == "forward"

    @pytest.mark.parametrize("text", ["1.1.1.1:", "1.1.1.1:dns", "1.1.1.1:65536", "1.1.1.1:0", ":53", "[::1", "a b:53"])
    def test_that_is_none(self, text):
        with pytest.raises(UsageError, match=r"is no HOST\[:PORT\]"):
            settings_for("exec", options("--dns-server", text))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--dns", "synthetic"], "--dns synthetic by names"),
            (["--allow", "x.org"], "rules that name a host by names"),
            (["--dns", "off"], "nobody is asked"),
        ],
    )
    def test_that_nobody_would_ask(self, words, said):
        with pytest.raises(UsageError, match=said):
            settings_for("exec", options("--dns-server", "1.1.1.1", *words))


@pytest.mark.parametrize(
    ("words", "shares"),
    [
        ([], False),
        (["--mode", "ptrace"], False),
        (["--mode", "ptrace", "--not-ignore-local"], True),
    ],
)
def test_the_hosts_addresses_are_like_any_others_only_when_asked_for(words, shares):
    with settings(*words) as made:
        assert made.shares_host == shares
