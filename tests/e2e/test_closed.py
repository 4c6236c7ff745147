"""There is no second way out: not by another protocol, not by raw frames, not when a part of ours is dead."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from lab import addresses as at
from lab.grafting import Host, command_of, processes_of, read_line, state_of
from lab.internet import eventually
from lab.sniffer import Frame, Sniffer

PYTHON = "/usr/bin/python3"


def datagrams(host: Host, programs: Path, *, grafted: bool) -> tuple[dict[str, Any], list[Frame]]:
    """What the tries of datagrams.py gave, and the frames that left the host for their addresses meanwhile."""
    command = [PYTHON, str(programs / "datagrams.py"), at.OTHER, at.WEB6]
    with Sniffer(host.lab) as sniffer:
        if grafted:
            done = host.graft([], *command)
            status, out, err = done.status, done.stdout, done.stderr
        else:
            plain = host.run(*command)
            status, out, err = plain.returncode, plain.stdout, plain.stderr.decode()
        assert status == 0, err
        frames = [frame for frame in sniffer.seen() if frame.destination in (at.OTHER, at.WEB6)]
    return json.loads(out), frames


@pytest.mark.route
def test_datagrams_go_nowhere(host: Host, programs: Path) -> None:
    seen, frames = datagrams(host, programs, grafted=True)
    assert frames == []
    for name in ("udp", "udp6", "quic"):
        assert seen[name]["result"] in ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES"), name
        assert seen[name]["seconds"] < 1, name
    for name in ("ping", "ping6", "raw ping", "raw 132", "raw 47"):
        assert not seen[name]["result"].startswith("received"), name
        assert seen[name]["seconds"] < 1, name  # an ICMP error, or no such socket at all


def test_the_same_datagrams_do_go_from_the_host(root_host: Host, programs: Path) -> None:
    """So that the silence above means something: not grafted, each of them crosses the cable."""
    _, frames = datagrams(root_host, programs, grafted=False)
    assert {frame.protocol for frame in frames} == {
        socket.IPPROTO_UDP,
        socket.IPPROTO_ICMP,
        socket.IPPROTO_ICMPV6,
        132,
        47,
    }


class TestRawFrames:
    def inject(self, host: Host, programs: Path, options: list[str]) -> list[Frame]:
        with Sniffer(host.lab) as sniffer:
            done = host.graft(
                ["--deny", at.OTHER, *options], PYTHON, str(programs / "inject.py"), at.WEB, at.WEB6, at.OTHER
            )
            assert done.status == 0, done.stderr
            assert int(done.stdout) > 200
            return sniffer.seen()

    @pytest.mark.parametrize("order", [[], ["--accept-first"]], ids=["held", "accept-first"])
    @pytest.mark.route
    def test_root_inside(self, root_host: Host, programs: Path, order: list[str]) -> None:
        """Root in the graft may put any frame on the wire; none of them comes out at the other end."""
        frames = self.inject(root_host, programs, order)
        # inject.py makes one allowed connection, to learn its neighbour's address; nothing but that was seen.
        assert {(frame.protocol, frame.source) for frame in frames} == {(socket.IPPROTO_TCP, at.HOST)}
        assert {(frame.destination, frame.destination_port) for frame in frames} == {(at.WEB, 80)}
        assert len(opened(frames)) == 1

    def test_a_user_has_not_even_the_socket(self, user_host: Host, programs: Path) -> None:
        done = user_host.graft([], PYTHON, str(programs / "inject.py"), at.WEB, at.WEB6, at.OTHER)
        assert done.status == 1
        assert "PermissionError" in done.stderr

    def test_a_user_namespace_of_its_own_is_no_help(self, user_host: Host, programs: Path) -> None:
        """All powers in a namespace below give none over the network that it came with."""
        done = user_host.graft(
            [], "unshare", "--user", "--map-root-user", PYTHON, str(programs / "inject.py"),
            at.WEB, at.WEB6, at.OTHER,
        )  # fmt: skip
        assert done.status == 1
        assert "PermissionError" in done.stderr


class TestInside:
    def test_one_cable_and_nothing_else(self, host: Host) -> None:
        done = host.graft(
            [], PYTHON, "-c", "import socket; print(sorted(n for _, n in socket.if_nameindex()))"
        )
        names = json.loads(done.stdout.decode().replace("'", '"'))
        assert len(names) == 2
        assert "lo" in names

    @pytest.mark.route
    def test_root_cannot_reach_the_host_by_routes_of_its_own(self, root_host: Host) -> None:
        """New routes lead to the same end of the same cable."""
        script = (
            f"ip route replace default dev $(ip -o link | awk -F': ' '!/ lo:/{{print $2}}' | cut -d@ -f1) && "
            f"curl -sS -m 10 http://{at.HOST}:{at.HOST_PAGE}/; curl -sS -m 10 http://{at.METADATA}/"
        )
        done = root_host.graft([], "sh", "-c", script)
        assert b"hello" not in done.stdout

    @pytest.mark.route
    def test_abstract_sockets_of_the_host_are_not_there(self, user_host: Host) -> None:
        """They belong to a network namespace: a desktop's session bus does not leak in."""
        with user_host.lab.host.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind("\0lab-abstract")
            listener.listen()
            script = (
                "import socket; s = socket.socket(socket.AF_UNIX); print(s.connect_ex('\\0lab-abstract'))"
            )
            assert user_host.run(PYTHON, "-c", script).stdout == b"0\n"
            assert user_host.graft([], PYTHON, "-c", script).stdout == b"111\n"

    def test_the_namespaces_of_ours_are_out_of_reach(self, user_host: Host) -> None:
        """The command may not enter the host's network by way of the process that stands there."""
        script = (
            "import ctypes, os, sys\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "inside = os.stat('/proc/self/ns/net').st_ino\n"
            "entered = 0\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    try:\n"
            "        fd = os.open(f'/proc/{pid}/ns/net', os.O_RDONLY)\n"
            "    except OSError:\n"
            "        continue\n"
            "    if os.fstat(fd).st_ino != inside and libc.setns(fd, 0x40000000) == 0:\n"
            "        entered += 1\n"
            "print(entered)\n"
        )
        done = user_host.graft([], PYTHON, "-c", script)
        assert (done.status, done.stdout) == (0, b"0\n"), done.stderr


# Tries again and again, each time telling what came of it.
RESTLESS = (
    "import socket, sys, time\n"
    "while True:\n"
    "    try:\n"
    "        with socket.create_connection((sys.argv[1], 80), timeout=5): said = 'open'\n"
    "    except OSError as error: said = str(error)\n"
    "    try: print(said, flush=True)\n"
    "    except OSError: pass\n"
    "    time.sleep(0.005)\n"
)


def opened(frames: list[Frame]) -> list[Frame]:
    """Those that open a TCP connection: SYN without ACK, over IPv4."""
    return [
        frame for frame in frames
        if frame.ethertype == 0x0800 and frame.protocol == socket.IPPROTO_TCP and frame.data[14 + 20 + 13] & 0x12 == 2
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["supervisor", "forwarder"])
def test_killed(host: Host, which: str) -> None:
    """``kill -9`` of each of our processes in turn: the command ends, and nothing passes any more.

    conftest.py looks for what may be left: processes, links, mounts, descriptors.
    """
    with host.started([], PYTHON, "-c", RESTLESS, at.WEB) as process:
        assert read_line(process) == "open"
        graft = processes_of(process.pid, PYTHON)
        assert len(graft.command) == 1
        assert len(graft.ours) == 2  # should there be a third one day, it needs a line of its own here
        os.kill(graft.ours[["supervisor", "forwarder"].index(which)], signal.SIGKILL)
        if which == "forwarder":
            # The relays went with it: from now on not one connection may be opened, command or no command.
            with Sniffer(host.lab) as sniffer:
                said = process.communicate(timeout=10)
                assert eventually(lambda: command_of(graft.command[0]) == [])
                assert opened(sniffer.seen()) == []
            assert process.returncode not in (0, None), said
            assert b"netns-graft: error: " in said[1]
        assert eventually(lambda: command_of(graft.command[0]) == []), "the command goes on without its graft"
        for pid in graft.ours:
            assert eventually(lambda pid=pid: command_of(pid) == [])
        with Sniffer(host.lab) as sniffer:
            assert opened(sniffer.seen()) == []


@pytest.mark.route
def test_a_stopped_command_finds_no_way_out_either(user_host: Host) -> None:
    """Its forwarder dies while it is stopped. Let go on by itself it has no network, and with its graft it ends."""
    with user_host.started([], PYTHON, "-c", RESTLESS, at.WEB) as process:
        assert read_line(process) == "open"
        graft = processes_of(process.pid, PYTHON)
        os.kill(graft.command[0], signal.SIGSTOP)
        assert eventually(lambda: state_of(graft.command[0]) in ("T", "t"))  # t: and it is traced
        os.kill(graft.ours[1], signal.SIGKILL)
        assert eventually(lambda: state_of(graft.ours[1]) in (None, "Z"))
        with Sniffer(user_host.lab) as sniffer:
            os.kill(graft.command[0], signal.SIGCONT)
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=20)
            assert command_of(graft.command[0]) == []
            assert opened(sniffer.seen()) == []
        assert process.returncode not in (0, None), (out, err)


def test_a_daemon_left_inside_has_no_network(host: Host, programs: Path) -> None:
    """Double-forked, in a session of its own, deaf to signals: when the command ends, so does its network."""
    script = (
        "import os, signal, socket, sys, time\n"
        "if os.fork(): os.wait(); print('left', flush=True); sys.exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "for number in (1, 2, 3, 13, 15): signal.signal(number, signal.SIG_IGN)\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "while not os.path.exists('go'): time.sleep(0.005)\n"
        "try:\n"
        "    socket.create_connection((sys.argv[1], 80), timeout=5); said = 'open'\n"
        "except OSError as error: said = str(error)\n"
        "open('said.part', 'w').write(said); os.rename('said.part', 'said')\n"
    )
    with Sniffer(host.lab) as sniffer:
        done = host.graft([], PYTHON, "-c", script, at.WEB)
        assert (done.status, done.stdout) == (0, b"left\n"), done.stderr
        (host.place / "go").touch()
        pid_file, said = host.place / "pid", host.place / "said"
        gone = eventually(
            lambda: said.exists() or not pid_file.exists() or command_of(int(pid_file.read_text() or 0)) == []
        )
        assert gone
        assert not said.exists() or said.read_text() != "open"
        assert opened(sniffer.seen()) == []
