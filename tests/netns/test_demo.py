"""``netns-graft demo`` as anybody would run it, on hosts that are well and on hosts that are odd.

Each run is a process of its own that may use no network but what it makes: the test's process and namespaces are.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ground.child import in_own_namespaces

from netns_graft.linux import syscalls

DEMO = [sys.executable, "-m", "netns_graft", "demo"]
AS_ROOT = os.geteuid() == 0
PRINTABLE = re.compile(r"[ -~\n]*")

# A user namespace in which our ids stay ours, and in it a limit on namespaces; then the demo.
LIMITED = """
import os, sys
from netns_graft.linux import syscalls, userns
there, here = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(there[1], b"x")
    os.read(here[0], 1)
    with open(f"/proc/sys/user/{sys.argv[1]}", "w") as file:
        file.write(sys.argv[2])
    os.execv(sys.executable, [sys.executable, "-m", "netns_graft", "demo"])
os.read(there[0], 1)
userns.write_maps(pid)
os.write(here[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def run(argv: Sequence[str] = DEMO, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def started() -> subprocess.Popen[str]:
    """A demo in a session of its own that is about to run its grafted program."""
    demo = subprocess.Popen(
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("2. "):
            return demo
    pytest.fail(f"the demo ended early: {demo.communicate()[1]}")


@in_own_namespaces
def test_the_whole_story() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "  http://example.com/                    200 Hello, this is example.com.",
        "  http://forbidden.example/              No route to host",
        "  http://169.254.169.254/                No route to host",
        "  http://host.containers.internal:8080/  No route to host",
    ):
        assert line in done.stdout.splitlines()
    assert "one for example.com from 2001:db8:1::10, which is the host." in " ".join(done.stdout.split())


@in_own_namespaces
def test_each_row_has_the_process_that_asked() -> None:
    done = run()
    plain, grafted = re.findall(r"^  PID (\d+)$", done.stdout, re.MULTILINE)
    rows = re.findall(r"^  python\S* +(\d+) +(\S+) +(allow|deny) ", done.stdout, re.MULTILINE)
    assert plain != grafted
    assert rows == [
        (grafted, "example.com:80", "allow"),
        (grafted, "forbidden.example:80", "deny"),
        (grafted, "169.254.169.254:80", "deny"),
        (grafted, "host.containers.internal:8080", "deny"),
    ]


@in_own_namespaces
def test_it_reads_well_on_any_terminal() -> None:
    done = run(FORCE_COLOR="1", COLUMNS="200", PYTHONIOENCODING="ascii", http_proxy="http://192.0.2.99:1/")
    assert (done.returncode, done.stderr) == (0, "")
    assert PRINTABLE.fullmatch(done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("kind", ["missing", "dangling", "a link"])
def test_whatever_resolv_conf_is(kind: str, tmp_path: Path) -> None:
    @in_own_namespaces
    def test() -> None:
        _own_etc(tmp_path / "etc", without="resolv.conf")
        if kind != "missing":
            target = tmp_path / "stub-resolv.conf"
            os.symlink(target, "/etc/resolv.conf")
            if kind == "a link":
                target.write_text("nameserver 192.0.2.53\noptions ndots:5\n")
        done = run()
        assert (done.returncode, done.stderr) == (0, "")

    test()


@in_own_namespaces
def test_names_that_the_host_knows_otherwise(tmp_path: Path) -> None:
    _own_etc(tmp_path / "etc", without="hosts")
    Path("/etc/hosts").write_text("192.0.2.77 example.com forbidden.example host.containers.internal\n")
    done = run()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("limit", "value", "begins"),
    [
        ("max_net_namespaces", 0, False),
        ("max_net_namespaces", 3, True),
        ("max_mnt_namespaces", 1, True),
        *([] if AS_ROOT else [("max_user_namespaces", 0, False), ("max_user_namespaces", 1, True)]),
    ],
)
def test_namespaces_that_cannot_be_had(limit: str, value: int, begins: bool) -> None:
    done = run([sys.executable, "-c", LIMITED, limit, str(value)])
    assert done.returncode == 125
    assert len(re.findall("^netns-graft: error: ", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == begins  # a stage without a graft is possible, a story without a stage is not
    if limit == "max_user_namespaces":
        assert "netns-graft: hint: user namespaces are switched off or used up" in done.stderr


@in_own_namespaces
def test_interrupted() -> None:
    """Ctrl-C goes to the whole process group."""
    with started() as demo:
        os.killpg(demo.pid, signal.SIGINT)
        _out, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_ended_from_outside(number: signal.Signals) -> None:
    """That nothing stays is seen to for every test."""
    with started() as demo:
        demo.send_signal(number)
        demo.communicate(timeout=20)
    assert demo.returncode == -number


@in_own_namespaces
def test_nobody_reads_it_to_its_end() -> None:
    with started() as demo:
        assert demo.stdout is not None and demo.stderr is not None
        demo.stdout.close()
        assert demo.wait(timeout=20) == 141
        assert demo.stderr.read() == ""


def _own_etc(etc: Path, without: str) -> None:
    """/etc as it is, but for one name that does not stand in it. Needs a mount namespace of our own."""
    etc.mkdir()
    syscalls.mount("/etc", str(etc), "", syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount("own-etc", "/etc", "tmpfs", 0, "mode=0755")
    for name in os.listdir(etc):
        if name != without:
            os.symlink(etc / name, f"/etc/{name}")
