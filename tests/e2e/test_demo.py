"""The README's first command, and the small talk of the command line."""

import re
from importlib.metadata import version

import pytest
from lab.grafting import Host
from lab.identities import installed_command
from lab.sniffer import Sniffer


@pytest.mark.parametrize("who", ["user", "root", "nosub"])
def test_demo(request: pytest.FixtureRequest, who: str) -> None:
    host: Host = request.getfixturevalue(f"{who}_host")
    with Sniffer(host.lab) as sniffer:
        done = host.run(installed_command(), "demo", timeout=60)
        assert sniffer.seen() == []  # on this machine alone
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, text
    assert "Traceback" not in text
    assert re.search(r"\bden(y|ied)\b", text)
    assert re.search(r"\bok\b|\ballow(ed)?\b", text)
    pids = {int(number) for number in re.findall(r"\b(\d{2,7})\b", text)}
    with open("/proc/sys/kernel/pid_max") as file:
        assert any(1 < pid < int(file.read()) for pid in pids)


def test_demo_without_anything_in_the_path(user_host: Host) -> None:
    """Nothing but Python is needed: no curl, no ip, no nft, no newuidmap."""
    done = user_host.run("/usr/bin/env", "PATH=/nonexistent", installed_command(), "demo", timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_version(user_host: Host) -> None:
    done = user_host.run(installed_command(), "--version")
    assert (done.returncode, done.stdout.decode()) == (0, f"netns-graft {version('netns-graft')}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["exec", "--help"], ["demo", "--help"]], ids=" ".join)
def test_help(user_host: Host, arguments: list[str]) -> None:
    done = user_host.run(installed_command(), *arguments)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"netns-graft" in done.stdout


def test_help_names_every_option(user_host: Host) -> None:
    text = user_host.run(installed_command(), "exec", "--help").stdout.decode()
    for option in (
        "--proxy", "--default", "--allow", "--deny", "--dns", "--flows", "--fail-on-deny", "--summary",
        "--no-summary", "--accept-first", "--proxy-credentials",
    ):  # fmt: skip
        assert option in text, option


def test_no_such_command(user_host: Host) -> None:
    done = user_host.run(installed_command(), "nonsense")
    assert done.returncode == 2
    assert done.stderr.decode().count("netns-graft: error: ") == 1


def test_nothing_at_all(user_host: Host) -> None:
    done = user_host.run(installed_command())
    assert done.returncode == 2
