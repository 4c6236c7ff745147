"""The command is the caller's: its status, its descriptors, its signals. Only the network differs."""

import hashlib
import os
import signal
import subprocess
import time
from contextlib import ExitStack

import pytest
from lab import addresses as at
from lab.grafting import Host, namespace_of, processes_of, read_line, state_of
from lab.internet import eventually
from lab.server_files import PAGE


class TestStatus:
    @pytest.mark.parametrize(("command", "status"), [
        ("exit 0", 0), ("exit 3", 3), ("exit 125", 125), ("exit 255", 255),
        ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -SEGV $$", 139), ("kill -HUP $$", 129),
    ])  # fmt: skip
    def test_the_commands_own(self, host: Host, command: str, status: int) -> None:
        done = host.graft([], "sh", "-c", command)
        assert (done.status, done.stdout, done.stderr) == (status, b"", "")

    def test_without_the_two_dashes(self, user_host: Host) -> None:
        """The first token that is not ours starts the command, options and all."""
        argv = user_host.graft_argv([], ["sh", "-c", "exit 4"])
        argv.remove("--")
        assert user_host.run(*argv).returncode == 4

    def test_fail_on_deny(self, host: Host) -> None:
        deny = ["--fail-on-deny", "--deny", f"{at.DENIED}:80"]
        assert host.graft(deny, "sh", "-c", f"curl -s http://{at.DENIED}/; exit 0").status == 78
        assert host.graft(deny, "curl", "-s", f"http://{at.WEB}/").status == 0
        assert host.graft(deny[1:], "sh", "-c", f"curl -s http://{at.DENIED}/; exit 0").status == 0


class TestDescriptors:
    def test_bytes_pass_untouched(self, host: Host) -> None:
        data = os.urandom(1 << 20)
        done = host.graft([], "cat", input=data)
        assert done.stdout == data
        plain = host.run(*host.graft_argv([], ["sh", "-c", "cat >&2"]), input=data)
        assert plain.stdout == b""
        assert plain.stderr == data if host.mode == "route" else plain.stderr.endswith(b"\n" + data)

    def test_standard_input_stays_the_callers(self, user_host: Host) -> None:
        """Nothing of ours reads ahead: what the command leaves unread is there for the next one."""
        argv = " ".join(user_host.graft_argv([], ["head", "-c", "3"]))
        done = user_host.run("sh", "-c", f"{argv}; cat", input=b"onetwo")
        assert done.stdout == b"onetwo"

    def test_only_three(self, host: Host) -> None:
        done = host.graft(
            [], "/usr/bin/python3", "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
        )
        assert done.stdout == b"[0, 1, 2, 3]\n"  # the fourth one reads the directory

    def test_a_reader_that_leaves(self, user_host: Host) -> None:
        argv = " ".join(user_host.graft_argv([], ["yes"]))
        done = user_host.run("bash", "-c", f"{argv} | head -1; echo ${{PIPESTATUS[0]}}")
        assert done.stdout == b"y\n141\n"

    def test_output_that_nobody_closes(self, user_host: Host) -> None:
        """netns-graft ends when the command does, though a pipe of the command's is still held by the reader."""
        began = time.monotonic()
        with user_host.started([], "true") as process:
            assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10


# Everything of a process that a program can see of itself, but for the network.
SELF = """
import json, os, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
    "cwd": os.getcwd(),
    "umask": status["Umask"],
    "environment": {k: v for k, v in sorted(os.environ.items()) if k != "_"},
    "signals": [status[k] for k in ("SigBlk", "SigIgn", "SigCgt")],
    "capabilities": status["CapEff"],
    "nice": os.nice(0),
    "limits": [resource.getrlimit(n) for n in range(16)],
    "oom": open("/proc/self/oom_score_adj").read(),
    "files": sorted(os.listdir("/")),
    "pid namespace": os.readlink("/proc/self/ns/pid"),
    "home": os.stat(os.path.expanduser("~")).st_uid,
}, indent=1))
"""


class TestSelf:
    def test_nothing_but_the_network_differs(self, host: Host) -> None:
        plain = host.run("/usr/bin/python3", "-c", SELF)
        assert plain.returncode == 0, plain.stderr
        done = host.graft([], "/usr/bin/python3", "-c", SELF)
        assert done.stdout.decode() == plain.stdout.decode()

    def test_for_a_user_without_subordinate_ids(self, nosub_host: Host) -> None:
        plain = nosub_host.run("/usr/bin/python3", "-c", SELF)
        assert nosub_host.graft([], "/usr/bin/python3", "-c", SELF).stdout.decode() == plain.stdout.decode()

    def test_ignored_signals_stay_ignored(self, user_host: Host) -> None:
        """As nohup leaves them."""
        argv = user_host.graft_argv([], ["grep", "SigIgn", "/proc/self/status"])
        plain = user_host.run("sh", "-c", "trap '' HUP; exec grep SigIgn /proc/self/status")
        assert user_host.run("sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *argv).stdout == plain.stdout

    def test_files_made_inside_are_the_users(self, host: Host) -> None:
        host.graft([], "touch", "made")
        made = os.stat(host.place / "made")
        assert (made.st_uid, made.st_gid) == (host.identity.uid, host.identity.gid)

    def test_other_users_files_look_alike(self, user_host: Host) -> None:
        """With sub-ids or without, a stranger's file is not ours; our own is."""
        done = user_host.graft([], "stat", "-c", "%u", str(user_host.place))
        assert done.stdout.decode().strip() == str(user_host.identity.uid)


class TestSignals:
    @pytest.mark.parametrize(
        "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
    )
    def test_reach_the_command(self, host: Host, number: signal.Signals) -> None:
        name = number.name.removeprefix("SIG")
        script = f"trap 'echo caught; exit 42' {name}; echo ready; while :; do sleep 0.02; done"
        with host.started([], "sh", "-c", script) as process:
            assert read_line(process) == "ready"
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        assert (process.returncode, out, host.told(err.decode())) == (42, b"caught\n", "")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_end_a_command_that_does_nothing_about_them(self, host: Host, number: signal.Signals) -> None:
        with host.started([], "sh", "-c", "echo ready; exec sleep 100") as process:
            assert read_line(process) == "ready"
            process.send_signal(number)
            process.communicate(timeout=20)
        assert process.returncode in (128 + number, -number)

    def test_as_early_as_may_be(self, user_host: Host) -> None:
        """A signal while the graft is being built ends it as well."""
        for milliseconds in (1, 30, 60, 90, 120, 200):
            with user_host.started([], "sleep", "100") as process:
                time.sleep(milliseconds / 1000)  # any moment will do, and each should be met by one
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=20)
            assert process.returncode in (143, -15, 125)

    def test_stopped_and_continued(self, user_host: Host) -> None:
        with user_host.started([], "sh", "-c", "echo ready; read line; echo $line") as process:
            assert read_line(process) == "ready"
            for pid in processes_of(process.pid, "sh").command:
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGCONT)
            out, _ = process.communicate(b"word\n", timeout=20)
        assert (process.returncode, out) == (0, b"word\n")

    def test_stopped_and_then_continued_alone(self, user_host: Host) -> None:
        """We have stopped with the command, and go on with it."""
        with user_host.started([], "sh", "-c", "echo ready; read line; echo $line") as process:
            assert read_line(process) == "ready"
            found = processes_of(process.pid, "sh")
            (command,) = found.command
            os.kill(command, signal.SIGSTOP)
            assert eventually(lambda: state_of(found.ours[0]) == "T")
            os.kill(command, signal.SIGCONT)
            out, _ = process.communicate(b"word\n", timeout=20)
        assert (process.returncode, out) == (0, b"word\n")

    def test_a_process_group_that_is_killed(self, user_host: Host) -> None:
        """As a CI runner ends a job."""
        with user_host.started([], "sh", "-c", "echo ready; sleep 100; true") as process:
            assert read_line(process) == "ready"
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=20)
        assert process.returncode in (143, -15)

    def test_the_parent_that_is_killed(self, user_host: Host) -> None:
        """Whoever started netns-graft may die: the graft goes on, as any command would."""
        argv = " ".join(user_host.graft_argv([], ["sh", "-c", "'echo ready; read line; echo $line >said'"]))
        shell = user_host.argv(["bash", "-c", f"{argv} <&3 & echo $!; wait"])
        reading, writing = os.pipe()
        with subprocess.Popen(
            [shell[0], *shell[1:]], env=user_host.environment(), stdout=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: os.dup2(reading, 3), pass_fds=(3,),
        ) as process:  # fmt: skip
            os.close(reading)
            int(read_line(process))
            assert read_line(process) == "ready"
            os.kill(process.pid, signal.SIGKILL)
            os.write(writing, b"word\n")
            os.close(writing)
            assert eventually(
                lambda: (user_host.place / "said").exists() and (user_host.place / "said").read_text()
            )
            process.wait(timeout=10)


@pytest.mark.timeout(600)
@pytest.mark.route
def test_two_hundred_grafts_at_once(user_host: Host) -> None:
    """All of them alive at the same moment, each with a network of its own that works."""
    script = f"echo ready; read go; exec curl -sS http://{at.WEB}/"
    with ExitStack() as stack:
        grafts = []
        while len(grafts) < 200:
            batch = [stack.enter_context(user_host.started([], "sh", "-c", script)) for _ in range(10)]
            for process in batch:
                assert read_line(process, 60) == "ready"
            grafts += batch
        assert all(process.poll() is None for process in grafts)
        networks = {namespace_of(processes_of(process.pid, "sh").command[0]) for process in grafts}
        assert len(networks - {None}) == 200
        for process in grafts:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=120) for process in grafts]
        assert [out for out, _ in results] == [PAGE] * 200
        assert [err for _, err in results] == [b""] * 200
        assert [process.returncode for process in grafts] == [0] * 200


def test_twenty_at_the_very_same_moment(host: Host) -> None:
    with ExitStack() as stack:
        grafts = [
            stack.enter_context(host.started([], "curl", "-sS", f"http://{at.WEB}/")) for _ in range(20)
        ]
        said = [process.communicate(timeout=60) for process in grafts]
        assert [(out, host.told(err.decode())) for out, err in said] == [(PAGE, "")] * 20


@pytest.mark.route
def test_a_graft_in_a_graft(user_host: Host) -> None:
    """The inner one finds its way out by the outer one, and both write down what passed."""
    outer, inner = user_host.place / "outer", user_host.place / "inner"
    argv = user_host.graft_argv(
        ["--flows", str(outer)],
        user_host.graft_argv(["--flows", str(inner)], ["curl", "-sS", f"http://{at.WEB}/"]),
    )
    done = user_host.run(*argv)
    assert (done.returncode, done.stdout) == (0, PAGE), done.stderr
    assert outer.read_text().count('"protocol": "tcp"') == 1
    assert inner.read_text().count('"protocol": "tcp"') == 1


def test_a_big_command_line(user_host: Host) -> None:
    words = ["x" * 1000] * 100
    done = user_host.graft([], "sh", "-c", 'printf %s "$@" | sha256sum', "sh", *words)
    assert done.stdout.split()[0].decode() == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_names_that_are_not_utf8(user_host: Host) -> None:
    script = user_host.place / "caf\udce9"
    script.symlink_to("/usr/bin/curl")
    argv = [os.fsencode(part) for part in user_host.argv(user_host.graft_argv(
        ["--flows", "flows"], [str(script), "-sS", f"http://{at.WEB}/?\udcff"]))]  # fmt: skip
    done = subprocess.run(argv, env=user_host.environment(), capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, PAGE), done.stderr
    assert (user_host.place / "flows").read_bytes().count(b"udcff") == 1  # JSON's way to say it
