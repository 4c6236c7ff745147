"""On a terminal: keys, job control and a closed window are between the terminal and the command."""

import json
import os
import re
from collections.abc import Sequence

import pytest
from lab import addresses as at
from lab.grafting import Host, command_of, descendants, processes_of
from lab.internet import eventually
from lab.terminal import Terminal

CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x1a", "\x1c"
PROMPT = "lab> "


def graft_on_terminal(host: Host, options: Sequence[str], *command: str) -> Terminal:
    return Terminal(host.argv(host.graft_argv(options, command)), host.environment())


def shell(host: Host) -> Terminal:
    """An interactive shell on the host, not grafted, with job control."""
    return Terminal(host.argv(["bash", "--norc", "-i"]), host.environment({"PS1": PROMPT}))


def in_the_foreground(terminal: Terminal, argv0: str) -> bool:
    """Whether a process ``argv0`` runs there, and the terminal's keys are for it."""
    for pid in descendants(terminal.pid):
        if command_of(pid)[:1] == [argv0]:
            with open(f"/proc/{pid}/stat") as file:
                state, _, group, _, _, foreground = file.read().rpartition(")")[2].split()[:6]
            return state != "T" and group == foreground
    return False


class TestKeys:
    def test_ctrl_c(self, host: Host) -> None:
        with graft_on_terminal(host, ["--no-summary"], "sh", "-c", "echo ready; exec sleep 100") as terminal:
            terminal.wait_for("ready\n")
            terminal.type(CTRL_C)
            assert terminal.wait() in (130, -2)

    def test_ctrl_c_that_is_handled(self, host: Host) -> None:
        """Once, and not twice: the terminal sends it to the command as well as to us."""
        script = "trap 'echo got' INT; echo ready; read line; echo $line; read line; exit 9"
        with graft_on_terminal(host, ["--no-summary"], "bash", "-c", script) as terminal:
            terminal.wait_for("ready\n")
            terminal.type(CTRL_C)
            terminal.wait_for("got\n")
            terminal.type("word\n")
            terminal.wait_for("word\n")
            terminal.type("\n")
            assert terminal.wait() == 9
            assert terminal.shown.count("got") == 1

    def test_ctrl_backslash(self, user_host: Host) -> None:
        with graft_on_terminal(
            user_host, ["--no-summary"], "sh", "-c", "echo ready; exec sleep 100"
        ) as terminal:
            terminal.wait_for("ready\n")
            terminal.type(CTRL_BACKSLASH)
            assert terminal.wait() in (131, -3)

    @pytest.mark.route
    def test_the_terminal_is_the_commands(self, host: Host) -> None:
        script = (
            "import os, sys, json; print(json.dumps([os.ttyname(0), os.ttyname(1), os.ttyname(2),"
            " os.tcgetpgrp(0) == os.getpgrp(), os.get_terminal_size()]))"
        )
        with graft_on_terminal(host, ["--no-summary"], "/usr/bin/python3", "-c", script) as terminal:
            assert terminal.wait() == 0
            names = json.loads(terminal.shown)
        assert len(set(names[:3])) == 1
        assert names[3:] == [True, [200, 40]]

    def test_another_size(self, user_host: Host) -> None:
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done"
        with graft_on_terminal(user_host, ["--no-summary"], "bash", "-c", script) as terminal:
            terminal.wait_for("ready\n")
            terminal.resize(11, 77)
            terminal.wait_for("11 77\n")
            assert terminal.wait() == 0

    def test_raw_input(self, user_host: Host) -> None:
        """A full-screen program's terminal settings: its own, and set back afterwards by itself."""
        script = "stty raw -echo; printf 'ready.'; head -c 3 | od -An -c; stty sane"
        with graft_on_terminal(user_host, ["--no-summary"], "sh", "-c", script) as terminal:
            terminal.wait_for("ready.")
            terminal.type(CTRL_C + CTRL_Z + "x")
            terminal.wait_for("003 032   x")
            assert terminal.wait() == 0


class TestJobControl:
    def test_ctrl_z_and_fg(self, host: Host) -> None:
        """The shell sees its job stopped; in the foreground again it goes on where it was, network and all."""
        argv = " ".join(host.graft_argv(["--no-summary"], ["bash", "-c"]))
        script = f'\'echo st""arted; read line; echo "<$line>"; curl -sS http://{at.WEB}/\''
        with shell(host) as terminal:
            terminal.wait_for(PROMPT)
            terminal.type(f"{argv} {script}\n")
            terminal.wait_for("started\n")
            terminal.type(CTRL_Z)
            terminal.wait_for("Stopped")
            terminal.wait_for(PROMPT)
            terminal.type("jobs; echo al''ive\n")
            assert "Stopped" in terminal.wait_for("alive\n")
            terminal.wait_for(PROMPT)
            terminal.type("fg\n")
            terminal.type("word\n")
            terminal.wait_for("<word>\n")
            terminal.wait_for("hello from example.com\n")
            terminal.wait_for(PROMPT)
            terminal.type("exit 5\n")
            assert terminal.wait() == 5

    def test_in_the_background(self, user_host: Host) -> None:
        argv = " ".join(user_host.graft_argv(["--no-summary"], ["sh", "-c"]))
        with shell(user_host) as terminal:
            terminal.wait_for(PROMPT)
            terminal.type(f"{argv} 'curl -sS http://{at.WEB}/; exit 3' & wait $!; echo st\"\"atus $?\n")
            terminal.wait_for("hello from example.com\n")
            terminal.wait_for("status 3\n")
            terminal.type("exit\n")
            terminal.wait()

    def test_a_stopped_job_that_is_killed(self, user_host: Host) -> None:
        argv = " ".join(user_host.graft_argv(["--no-summary"], ["sleep", "100"]))
        with shell(user_host) as terminal:
            terminal.wait_for(PROMPT)
            terminal.type(f"{argv}\n")
            assert eventually(
                lambda: [p for p in descendants(terminal.pid) if command_of(p) == ["sleep", "100"]]
            )
            terminal.type(CTRL_Z)
            terminal.wait_for("Stopped")
            terminal.type("kill %1\n")  # the shell lets a stopped job go on, so that it can act on it
            assert eventually(lambda: descendants(terminal.pid) == [])
            terminal.type("exit\n")
            terminal.wait()

    def test_a_shell_inside(self, host: Host) -> None:
        """With job control of its own."""
        command = ["bash", "--norc", "-i"]
        with Terminal(
            host.argv(host.graft_argv(["--no-summary"], command)), host.environment({"PS1": PROMPT})
        ) as terminal:
            assert "no job control" not in terminal.wait_for(PROMPT)
            terminal.type("sleep 100\n")
            assert eventually(
                lambda: [p for p in descendants(terminal.pid) if command_of(p) == ["sleep", "100"]]
            )
            terminal.type(CTRL_Z)
            terminal.wait_for("Stopped")
            terminal.wait_for(PROMPT)
            terminal.type("fg\n")
            terminal.wait_for("sleep 100\n")
            # bash says so before it gives the terminal away, and wakes the job last.
            assert eventually(
                lambda: [state(p) for p in descendants(terminal.pid) if command_of(p) == ["sleep", "100"]] == ["S"]
            )
            terminal.type(CTRL_C)
            terminal.wait_for(PROMPT)
            terminal.type(f"curl -sS http://{at.WEB}/\n")
            terminal.wait_for("hello from example.com\n")
            terminal.wait_for(PROMPT)
            terminal.type("exit 6\n")
            assert terminal.wait() == 6


def state(pid: int) -> str:
    """As ps shows it; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class TestClosed:
    @pytest.mark.parametrize(
        "script", ["echo ready; exec sleep 100", "echo ready; while :; do sleep 0.1; done"]
    )
    def test_window(self, host: Host, script: str) -> None:
        """The command hears of it (SIGHUP) and ends; so do we. (conftest.py looks.)"""
        with graft_on_terminal(host, ["--no-summary"], "sh", "-c", script) as terminal:
            terminal.wait_for("ready\n")
            inside = processes_of(terminal.pid, "sleep" if "exec" in script else "sh").command[0]
            terminal.hang_up()
            assert eventually(lambda: command_of(inside) == [])

    def test_window_of_a_command_that_cleans_up(self, user_host: Host) -> None:
        script = "trap 'echo cleaned >cleaned; exit' HUP; echo ready; while :; do sleep 0.02; done"
        with graft_on_terminal(user_host, ["--no-summary"], "bash", "-c", script) as terminal:
            terminal.wait_for("ready\n")
            terminal.hang_up()
            assert eventually(lambda: (user_host.place / "cleaned").exists())

    def test_window_with_a_shell_around(self, user_host: Host) -> None:
        argv = " ".join(user_host.graft_argv([], ["sh", "-c", "'echo st\"\"arted; exec sleep 100'"]))
        with shell(user_host) as terminal:
            terminal.wait_for(PROMPT)
            terminal.type(f"{argv}\n")
            terminal.wait_for("started\n")


class TestSummary:
    COMMAND = (
        f"curl -s http://{at.WEB}/ >/dev/null; curl -s http://{at.DENIED}/; "
        f"curl -s http://{at.WEB}:{at.CLOSED}/; curl -s http://{at.OTHER}/ >/dev/null; echo $$ >pid"
    )

    def test_on_a_terminal(self, host: Host) -> None:
        """A table at the end: who, where to, verdict, upstream, bytes, time; what was denied comes first."""
        with graft_on_terminal(host, ["--deny", f"{at.DENIED}:80"], "sh", "-c", self.COMMAND) as terminal:
            assert terminal.wait() == 0
            shown = terminal.shown
        rows = [line for line in shown.splitlines() if re.search(r"\d+\.\d+\.\d+\.\d+", line)]
        assert len(rows) == 4, shown
        assert at.DENIED in rows[0]
        assert re.search(r"\bden(y|ied)\b", rows[0])
        assert not [row for row in rows[1:] if at.DENIED in row]
        assert all("curl" in row for row in rows)
        assert all("direct" in row for row in rows if at.OTHER in row or f"{at.WEB}:80" in row)
        assert any("refused" in row for row in rows if f":{at.CLOSED}" in row)
        assert all(re.search(r"\b\d{2,}\b", row) for row in rows)  # a PID

    @pytest.mark.route
    def test_not_when_told_so(self, user_host: Host) -> None:
        with graft_on_terminal(user_host, ["--no-summary"], "curl", "-sS", f"http://{at.WEB}/") as terminal:
            assert terminal.wait() == 0
            assert terminal.shown == "hello from example.com\n"

    def test_quiet_when_stderr_is_no_terminal(self, host: Host) -> None:
        done = host.graft(["--deny", f"{at.DENIED}:80"], "sh", "-c", self.COMMAND)
        assert (done.status, done.stdout, done.stderr) == (0, b"", "")

    def test_asked_for_without_a_terminal(self, user_host: Host) -> None:
        done = user_host.graft(["--summary", "--deny", f"{at.DENIED}:80"], "sh", "-c", self.COMMAND)
        assert done.stdout == b""
        lines = [line for line in done.stderr.splitlines() if at.DENIED in line or at.WEB in line]
        assert at.DENIED in lines[0]
        assert "\x1b[" not in done.stderr  # no colours into a file

    def test_odd_arguments_cannot_write_on_the_terminal(self, user_host: Host) -> None:
        """A workload chooses its own name: escape sequences and markup in it are only text."""
        name = user_host.place / "\x1b]0;title\x07[red]curl"
        os.symlink("/usr/bin/curl", name)
        with graft_on_terminal(user_host, [], str(name), "-sS", f"http://{at.WEB}/\x1b[31m") as terminal:
            terminal.wait()
            assert at.WEB in terminal.shown
            assert "\x1b]0;" not in terminal.shown
            assert "\x07" not in terminal.shown
