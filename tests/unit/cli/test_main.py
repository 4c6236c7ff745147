"""The way in, run as users run it: a real process, its two streams and its exit status."""

import os
import subprocess
import sys

import pytest

import netns_graft
from netns_graft.cli import main as main_module
from netns_graft.errors import GraftError

COMMAND = [sys.executable, "-m", "netns_graft"]


def run(*words, **options):
    done = subprocess.run([*COMMAND, *words], capture_output=True, stdin=subprocess.DEVNULL, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_version():
    assert run("--version") == (0, f"netns-graft {netns_graft.__version__}\n", "")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_the_commands_there_are(word):
    status, out, err = run(word)
    assert (status, err) == (0, "")
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("  netns-graft ")]
    assert listed == [*main_module._COMMANDS, "COMMAND", "--version"]


@pytest.mark.parametrize(
    ("words", "first"), [(["exec", "--help"], "usage: netns-graft exec"), (["demo", "-h"], "usage: ")]
)
def test_help_of_a_command(words, first):
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert out.startswith(first)


@pytest.mark.parametrize(
    ("words", "err"),
    [
        ([], "netns-graft: error: no command given\nnetns-graft: hint: netns-graft --help\n"),
        (
            ["exce", "true"],
            "netns-graft: error: unknown command 'exce'\nnetns-graft: hint: did you mean exec?\n",
        ),
        (["zzz"], "netns-graft: error: unknown command 'zzz'\nnetns-graft: hint: netns-graft --help\n"),
        (
            ["--verson"],
            "netns-graft: error: unknown option '--verson'\nnetns-graft: hint: did you mean --version?\n",
        ),
        (
            ["demo", "now"],
            "netns-graft: error: demo takes no arguments, not 'now'\nnetns-graft: hint: netns-graft demo --help\n",
        ),
        (["exec", "--summary=\n", "x"], "netns-graft: error: --summary takes no value\n"),
        (
            ["exec", "--deny", "a\nb\x1b[31m", "x"],
            "netns-graft: error: --deny: 'a\\nb\\x1b[31m' has white space in it\n"
            "netns-graft: hint: give one pattern to each option\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_a_hint_and_2(words, err):
    assert run(*words) == (2, "", err)


def test_bytes_that_are_not_utf8_are_told_as_escapes():
    status, _, err = run(b"\xff\x1b")
    assert (status, err.splitlines()[0]) == (2, "netns-graft: error: unknown command '\\udcff\\x1b'")


def test_a_reader_that_has_left_is_no_traceback():
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = subprocess.run([*COMMAND, "exec", "--help"], stdout=write_fd, stderr=subprocess.PIPE)
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams_are_no_traceback():
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *COMMAND, "--version"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *COMMAND, "nonsense"], capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")


class TestHowACommandFails:
    """The table of commands is the seam: a command here is any callable."""

    @pytest.fixture
    def failing(self, monkeypatch):
        def with_error(error):
            def command(_argv):
                raise error

            monkeypatch.setitem(main_module._COMMANDS, "fail", command)
            return main_module.main(["fail"])

        return with_error

    def test_our_errors_bring_their_status(self, failing, capsys):
        assert failing(GraftError("no user namespaces", hint="sysctl x=1")) == 125
        assert capsys.readouterr().err == (
            "netns-graft: error: no user namespaces\nnetns-graft: hint: sysctl x=1\n"
        )
        assert failing(GraftError("not found", status=127)) == 127
        assert capsys.readouterr().err == "netns-graft: error: not found\n"

    def test_an_interrupt(self, failing, capsys):
        assert failing(KeyboardInterrupt()) == 130
        assert capsys.readouterr().err == ""

    def test_a_defect_is_one_line(self, failing, capsys, monkeypatch):
        monkeypatch.delenv("NETNS_GRAFT_DEBUG", raising=False)
        assert failing(ZeroDivisionError("division\nby zero")) == 125
        first, second = capsys.readouterr().err.splitlines()
        assert first == "netns-graft: error: internal error: ZeroDivisionError: division\\nby zero"
        assert "NETNS_GRAFT_DEBUG=1" in second

    def test_a_defect_is_shown_whole_when_asked_for(self, failing, capsys, monkeypatch):
        monkeypatch.setenv("NETNS_GRAFT_DEBUG", "1")
        assert failing(ZeroDivisionError("x")) == 125
        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert err.endswith("netns-graft: error: internal error: ZeroDivisionError: x\n")

    def test_a_pipe_of_our_own_that_broke_is_a_defect(self, failing, capsys):
        assert failing(BrokenPipeError("to the forwarder")) == 125
        assert "internal error: BrokenPipeError" in capsys.readouterr().err

    def test_the_commands_status_is_handed_on(self, monkeypatch):
        monkeypatch.setitem(
            main_module._COMMANDS, "works", lambda argv: 78 if list(argv) == ["a", "-b"] else 1
        )
        assert main_module.main(["works", "a", "-b"]) == 78
