"""The command line of ``exec``, as the contract has it, and what is said of a wrong one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.cli.options import exec_parser, parse_exec, split
from netns_graft.errors import ConfigError, GraftError, UsageError


def parse(line):
    return parse_exec(line.split(), {})


class TestSplit:
    @pytest.mark.parametrize(
        ("line", "ours", "rest"),
        [
            ("curl -sS x", "", "curl -sS x"),
            ("--proxy direct curl --proxy y", "--proxy direct", "curl --proxy y"),
            ("--proxy=direct --summary curl", "--proxy=direct --summary", "curl"),
            ("--allow x.org --deny :25 -- -odd --deny", "--allow x.org --deny :25", "-odd --deny"),
            ("-- --", "", "--"),
            ("--flows - curl", "--flows -", "curl"),
            ("--flows=- -- curl", "--flows=-", "curl"),
            ("--network none image", "", "--network none image"),
            ("- x", "", "- x"),
            ("", "", ""),
            ("--", "", ""),
        ],
    )
    def test_ours_come_first(self, line, ours, rest):
        assert split(line.split()) == (ours.split(), rest.split())

    @pytest.mark.parametrize(
        "line", ["--proxy", "--allow x --deny", "--flows -- curl", "--allow --deny x curl"]
    )
    def test_a_value_that_is_missing(self, line):
        with pytest.raises(UsageError, match="needs a value"):
            split(line.split())

    def test_a_value_that_nobody_takes(self):
        with pytest.raises(UsageError, match="--summary takes no value"):
            split(["--summary=yes", "curl"])

    @given(
        st.lists(
            st.text(max_size=8) | st.sampled_from(["--proxy", "--allow", "--", "-", "--summary", "--dns=off"])
        )
    )
    def test_no_word_is_lost(self, argv):
        try:
            ours, rest = split(argv)
        except UsageError:
            return
        assert [*ours, *rest] == argv or [*ours, "--", *rest] == argv


class TestParse:
    def test_nothing_told(self):
        options, command = parse("curl -sS https://x.org/")
        assert command == ["curl", "-sS", "https://x.org/"]
        assert options.proxies == () and options.rules == () and options.default == "allow"
        assert options.dns is None and options.flows is None and options.summary is None
        assert options.proxy_credentials is None
        assert not options.fail_on_deny and not options.accept_first
        assert not options.policy.names_hosts
        assert (options.mode, options.ignore_local, options.strict, options.user) == ("route", True, False, None)

    def test_everything_told(self):
        options, command = parse(
            "--proxy socks5h://a:1,http://b:2 --proxy=direct --proxy-credentials cred --default deny "
            "--allow x.org:443 --deny=:25 --allow 10.0.0.0/8 --dns synthetic --flows f.jsonl "
            "--fail-on-deny --summary --accept-first -- curl --proxy z"
        )
        assert command == ["curl", "--proxy", "z"]
        assert options.proxies == ("socks5h://a:1,http://b:2", "direct")
        assert options.proxy_credentials == "cred"
        assert options.default == "deny"
        assert options.rules == (("allow", "x.org:443"), ("deny", ":25"), ("allow", "10.0.0.0/8"))
        assert options.dns == "synthetic" and options.flows == "f.jsonl"
        assert options.fail_on_deny and options.summary and options.accept_first
        assert options.policy.names_hosts

    def test_what_is_for_mode_ptrace(self):
        options, command = parse("--mode ptrace --not-ignore-local --strict --user nobody true")
        assert (options.mode, options.ignore_local, options.strict, options.user) == ("ptrace", False, True, "nobody")
        assert command == ["true"]

    def test_a_user_in_either_mode(self):
        assert parse("--user nobody true")[0].user == "nobody"

    def test_allow_and_deny_keep_their_order(self):
        one, _ = parse("--allow 192.0.2.1 --deny 192.0.2.1 true")
        other, _ = parse("--deny 192.0.2.1 --allow 192.0.2.1 true")
        assert [action for action, _ in one.rules] == ["allow", "deny"]
        assert [action for action, _ in other.rules] == ["deny", "allow"]

    def test_the_last_word_counts(self):
        assert parse("--summary --no-summary true")[0].summary is False
        assert parse("--no-summary --summary true")[0].summary is True
        assert parse("--dns off --dns forward true")[0].dns == "forward"

    def test_a_value_may_begin_with_a_dash(self):
        assert parse("--flows - true")[0].flows == "-"
        assert parse("--flows -x true")[0].flows == "-x"

    def test_one_parse_does_not_mark_the_next(self):
        parse("--allow x.org --proxy direct true")
        options, _ = parse("true")
        assert options.rules == () and options.proxies == ()

    def test_the_environment_is_handed_on(self):
        environ = {"NETNS_GRAFT_PROXY_PASSWORD": "s3cret"}
        options, _ = parse_exec(["true"], environ)
        assert options.environ == environ

    def test_no_password_in_its_text(self):
        options, _ = parse_exec(["--proxy", "socks5://u:s3cret@h:1", "true"], {"X": "s3cret"})
        assert "s3cret" not in repr(options)


WRONG = [
    ("", "no command to run", "COMMAND"),
    ("--summary", "no command to run", "COMMAND"),
    ("--", "no command to run", "COMMAND"),
    ("--prox direct curl", "unknown option --prox", "did you mean --proxy?"),
    ("--flow=x curl", "unknown option --flow", "did you mean --flows?"),
    ("--policy x curl", "unknown option --policy", "COMMAND --policy"),
    ("--record x curl", "unknown option --record", ""),
    ("--locked x curl", "unknown option --locked", ""),
    ("--mode tun curl", "--mode: 'tun' is not one of route, ptrace", "--help"),
    ("--strict curl", "--strict is for mode ptrace", "--mode ptrace --strict"),
    ("--mode route --not-ignore-local curl", "--not-ignore-local is for mode ptrace", "--mode ptrace"),
    ("--user= curl", "--user: the value is empty", "--help"),
    ("--publish 80:80 curl", "unknown option --publish", ""),
    ("-x curl", "unknown option -x", "COMMAND -x"),
    ("--proxy", "--proxy needs a value", "--help"),
    ("--summary=1 curl", "--summary takes no value", None),
    ("--proxy= curl", "--proxy: the value is empty", "--help"),
    ("--flows= curl", "--flows: the value is empty", "--help"),
    ("--dns maybe curl", "--dns: 'maybe' is not one of synthetic, forward, off", "--help"),
    ("--default ask curl", "--default: 'ask' is not one of allow, deny", "--help"),
    ("--allow 10.0.0.1/8 curl", "--allow: '10.0.0.1/8' has bits set", "write 10.0.0.0/8"),
    ("--deny 300.1.1.1 curl", "--deny: '300.1.1.1' is no IPv4 address", None),
    ("--deny https://x.org/ curl", "--deny: 'https://x.org/' is a URL", "x.org:443"),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG)
def test_wrong_usage(line, message, hint):
    with pytest.raises((UsageError, ConfigError)) as caught:
        parse(line)
    assert caught.value.status == 2
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.hint is None) if hint is None else (hint in caught.value.hint)


@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(["--allow", "--deny", "--dns", "--default", "--", "x.org"])
    )
)
def test_any_words_are_a_command_or_our_error(argv):
    if {"-h", "--help"} & {word.partition("=")[0] for word in argv}:
        return
    try:
        _, command = parse_exec(argv, {})
    except GraftError as error:
        assert error.status == 2
    else:
        assert command


def test_help_tells_of_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--summary --help curl")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = {name for action in exec_parser()._actions for name in action.option_strings}
    assert options == {
        *("--proxy", "--proxy-credentials", "--default", "--allow", "--deny", "--dns", "--flows"),
        *("--fail-on-deny", "--summary", "--no-summary", "--accept-first", "--attribution", "-h", "--help"),
        *("--select-proxy-mode", "--direct-file", "--proxy-file", "--dns-server", "--graftcp-config"),
        *("--mode", "--user", "--not-ignore-local", "--strict"),
    }
    for option in options:
        assert option in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_readme_tells_of_every_option():
    table = (Path(__file__).parents[3] / "README.md").read_text()
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `--")]
    told = {name for row in rows for name in re.findall(r"--[a-z-]+", row)}
    assert told == {name for action in exec_parser()._actions for name in action.option_strings} - {"-h", "--help"}


def test_reading_a_command_line_imports_nothing_slow():
    code = (
        "import sys, json; from netns_graft.cli.main import main; from netns_graft.cli.options import parse_exec;"
        "parse_exec(['--allow', 'x.org', '--deny', '10.0.0.0/8', 'true'], {}); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {
        "rich",
        "asyncio",
        "pyroute2",
        "dns",
        "h11",
        "python_socks",
        "socket",
        "subprocess",
        "difflib",
    }
