"""graftcp's configuration file as options of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.cli.graftcp_config import parse_graftcp_config, read_graftcp_config
from netns_graft.cli.options import parse_exec
from netns_graft.dialling import Credentials
from netns_graft.dialling.url import parse_chain
from netns_graft.errors import ConfigError

# Every key of graftcp 0.8's example, and those of 0.7's two files that 0.8 dropped.
EVERYTHING = """\
## graftcp configuration

socks5 = 192.0.2.1:1080
socks5_username = someone
socks5_password = p@ss:w/rd
http_proxy=[2001:db8::1]:8080
Select_Proxy_Mode = random
dns_proxy = true
dns_server = 9.9.9.9:53
udp_proxy = false
blackip_file_path = /etc/black.txt
whiteip_file_path = white.txt
ignore_local = true
username = builder
  # 0.7
listen = :2233
logfile =
loglevel = 1
pipepath = /tmp/graftcplocal.fifo
use_syslog = false
local_addr = localhost
local_port = 2233
"""


def words(text: str, *given: str, traces: bool = False) -> list[str]:
    made, notes = parse_graftcp_config(text, "g.conf").words(given, traces=traces)
    assert notes == []
    return made


def notes(text: str) -> list[str]:
    return parse_graftcp_config(text, "g.conf").words((), traces=False)[1]


def test_every_key():
    assert words(EVERYTHING) == [
        "--proxy=socks5://someone:p%40ss%3Aw%2Frd@192.0.2.1:1080",
        "--proxy=http://[2001:db8::1]:8080",
        "--select-proxy-mode=random",
        "--direct-file=/etc/black.txt",
        "--proxy-file=white.txt",
        "--user=builder",
        "--dns=forward",
        "--dns-server=9.9.9.9:53",
    ]


def test_what_the_file_does_not_say_is_as_graftcp_has_it():
    assert words("# nothing\n") == ["--proxy=socks5://127.0.0.1:1080"]
    assert words("http_proxy = p:8080") == ["--proxy=socks5://127.0.0.1:1080", "--proxy=http://p:8080"]
    assert words("socks5 =\nhttp_proxy = p:8080") == ["--proxy=http://p:8080"]
    assert words("dns_proxy = on")[1:] == ["--dns=forward", "--dns-server=1.1.1.1:53"]
    assert words("dns_server = 9.9.9.9:53")[1:] == []


def test_direct_needs_no_proxy():
    assert words("socks5 =\nselect_proxy_mode = direct") == ["--select-proxy-mode=direct"]
    with pytest.raises(ConfigError, match=r"g\.conf: socks5 is empty and there is no http_proxy"):
        words("socks5 =")


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (["--proxy"], ["--proxy"]),
        (["--select-proxy-mode"], ["--select-proxy-mode"]),
        (["--direct-file", "--proxy-file"], ["--direct-file", "--proxy-file"]),
        (["--user"], ["--user"]),
        (["--dns"], ["--dns", "--dns-server"]),
        (["--dns-server"], ["--dns", "--dns-server"]),
        (["--flows", "--allow"], []),
    ],
)
def test_the_command_line_goes_before_the_file(given, gone):
    left = words(EVERYTHING, *given)
    assert left == [word for word in words(EVERYTHING) if word.partition("=")[0] not in gone]


def test_the_last_of_two_counts():
    assert words("socks5 = a:1\nSOCKS5 = b:2") == ["--proxy=socks5://b:2"]
    assert words("ignore_local = false\nnot-ignore-local = no", traces=True) == words("")
    assert words("not-ignore-local = no\nignore_local = 0", traces=True) == [*words(""), "--not-ignore-local"]


def test_local_addresses():
    assert words("ignore_local = false", traces=True)[1:] == ["--not-ignore-local"]
    assert words("not_ignore_local = Yes", traces=True)[1:] == ["--not-ignore-local"]
    assert words("ignore_local = true", traces=True)[1:] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nignore_local = false", "g.conf:2: local addresses are not left alone: that is for --mode ptrace"),
        ("not-ignore-local=1", "g.conf:1: local addresses are not left alone: that is for --mode ptrace"),
        ("udp_proxy = true", "g.conf:1: UDP other than DNS is closed"),
        ("logfile = /var/log/x", "g.conf:1: nothing is logged there; --flows FILE records what is contacted"),
        ("use_syslog = true", "g.conf:1: nothing is logged there; --flows FILE records what is contacted"),
    ],
)
def test_what_could_matter_is_told(text, said):
    assert notes(text) == [said]


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("\nsocks4 = x:1", 2, "graftcp has no key 'socks4'"),
        ("socks5_pasword = hunter2", 1, "graftcp has no key 'socks5_pasword'"),
        ("hunter2", 1, "no line of the form key = value"),
        ("= hunter2", 1, "no line of the form key = value"),
        ("user:hunter2@host = 1", 1, "no line of the form key = value"),
        ("socks5 = user:hunter2@host:1080", 1, "socks5 is not of the form HOST:PORT"),
        ("socks5 = host", 1, "socks5 is not of the form HOST:PORT"),
        ("socks5 = :1080", 1, "socks5 is not of the form HOST:PORT"),
        ("http_proxy = http://host:8080", 1, "http_proxy is not of the form HOST:PORT"),
        ("http_proxy = host:0", 1, "http_proxy is not of the form HOST:PORT"),
        ("http_proxy = host:65536", 1, "http_proxy is not of the form HOST:PORT"),
        ("select_proxy_mode = hunter2", 1, "select_proxy_mode is not one of auto, random"),
        ("select_proxy_mode =", 1, "select_proxy_mode is not one of"),
        ("ignore_local", 1, "no line of the form"),
        ("ignore_local = maybe", 1, "ignore_local is neither true nor false"),
        ("enable-dns = 2", 1, "enable-dns is neither true nor false"),
        ("socks5_password = hunter2", 1, "socks5_password without a socks5_username"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line_and_without_its_value(text, where, said):
    with pytest.raises(ConfigError, match=said) as caught:
        words(text)
    assert caught.value.where == f"g.conf:{where}" and caught.value.status == 2
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_a_mistyped_key_is_guessed_at():
    with pytest.raises(ConfigError) as caught:
        words("blackip_file = x")
    assert caught.value.hint == "did you mean blackip_file_path?" or caught.value.hint == "did you mean blackip-file?"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="--graftcp-config: cannot read"):
        read_graftcp_config(str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"socks5_password = \xff")
    with pytest.raises(ConfigError, match="no UTF-8"):
        read_graftcp_config(str(tmp_path / "binary"))


login = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@given(login, login)
def test_a_login_arrives_whatever_is_in_it(user, password):
    text = f"socks5_username = {user}\nsocks5_password = {password}\n"
    url = words(text)[0].removeprefix("--proxy=")
    found = parse_chain(url, Credentials())[0].login
    assert (found.username, found.password) == (user, password)


@given(st.text())
def test_any_text_is_a_configuration_or_our_error(text):
    try:
        parse_graftcp_config(text, "g.conf").words((), traces=True)
    except ConfigError as error:
        assert error.where is not None


class TestOnTheCommandLine:
    @pytest.fixture
    def config(self, tmp_path):
        def write(text: str) -> str:
            path = tmp_path / "graftcp.conf"
            path.write_text(text)
            return str(path)

        return write

    def test_it_is_read(self, config):
        options, command = parse_exec(["--graftcp-config", config(EVERYTHING), "true"], {})
        assert options.proxies[1] == "http://[2001:db8::1]:8080" and len(options.proxies) == 2
        assert (options.select_proxy_mode, options.direct_file, options.proxy_file, options.user) == (
            "random", "/etc/black.txt", "white.txt", "builder",
        )  # fmt: skip
        assert (options.dns, options.dns_server, command) == ("forward", "9.9.9.9:53", ["true"])
        assert "w/rd" not in repr(options) and "w%2Frd" not in repr(options)

    def test_what_is_given_goes_before_it_wherever_it_stands(self, config):
        file = config(EVERYTHING)
        for line in (["--proxy=direct", "--graftcp-config", file], ["--graftcp-config", file, "--proxy", "direct"]):
            assert parse_exec([*line, "true"], {})[0].proxies == ("direct",)

    def test_a_note_is_one_line_on_stderr(self, config, capsys):
        parse_exec(["--graftcp-config", config("udp_proxy = 1"), "true"], {})
        said = capsys.readouterr().err
        assert said.startswith("netns-graft: note: ")
        assert said.endswith("/graftcp.conf:1: UDP other than DNS is closed\n")

    def test_mode_ptrace_takes_what_is_said_of_local_addresses(self, config, capsys):
        file = config("ignore_local = false")
        assert not parse_exec(["--mode", "ptrace", "--graftcp-config", file, "true"], {})[0].ignore_local
        assert capsys.readouterr().err == ""
        assert parse_exec(["--graftcp-config", file, "true"], {})[0].ignore_local
        assert "--mode ptrace" in capsys.readouterr().err
