"""The lab itself: two namespaces joined by a cable, and every server of ``addresses`` in them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lab import addresses as at
from lab import server_files
from lab.identities import Identity, make_identities
from lab.namespaces import Namespace

PROGRAMS = Path(__file__).parent / "programs"
START_SECONDS = 20.0
T = TypeVar("T")


def eventually(found: Callable[[], T], seconds: float = 10.0) -> T:
    """``found()`` as soon as it is true, for what only shows itself to who looks. The last value after
    ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return value


class Lab:
    """One host and one Internet. Root only; ``close`` leaves nothing."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="graft-lab-", dir="/var/tmp"))
        self.place.chmod(0o755)
        self._servers: list[subprocess.Popen[bytes]] = []
        # Without the mark of the leak check: what the lab starts is meant to outlive a test.
        self._environment = {k: v for k, v in os.environ.items() if k != "NETNS_GRAFT_TEST_MARK"}
        self.identities: dict[str, Identity] = make_identities(self.place)
        self.host = Namespace(self._environment)
        self.inet = Namespace(self._environment)
        try:
            self._wire()
            self._configure_names()
            self.digests = server_files.write_site(self.place)
            server_files.write_repository(self.place)
            server_files.write_certificates(self.place)
            self._start_servers()
        except BaseException:
            self.close()
            raise

    # Wiring

    def _wire(self) -> None:
        for namespace in (self.host, self.inet):
            namespace.run("ip", "link", "set", "lo", "up")
        self.host.run(
            "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(self.inet.pid)
        )
        for namespace, own, own6 in ((self.host, at.HOST, at.HOST6), (self.inet, at.GATEWAY, at.GATEWAY6)):
            namespace.run("ip", "address", "add", f"{own}/24", "dev", "cable")
            namespace.run("ip", "address", "add", f"{own6}/64", "dev", "cable", "nodad")
            namespace.run("ip", "link", "set", "cable", "up")
        self.host.run("ip", "route", "add", "default", "via", at.GATEWAY)
        self.host.run("ip", "route", "add", "default", "via", at.GATEWAY6)
        for address in at.INET_ADDRESSES:
            self.inet.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        for address in at.INET_ADDRESSES6:
            self.inet.run("ip", "address", "add", f"{address}/128", "dev", "lo", "nodad")
        # A router that knows no way says so; for one address it keeps silent.
        self.inet.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.inet.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv4.tcp_max_syn_backlog=4096")
        self.inet.run("ip", "route", "add", "unreachable", at.UNREACHABLE)
        self.inet.run("ip", "route", "add", "blackhole", at.BLACKHOLE)
        # The users' pings are sockets as well: the host allows them, so a graft that stops them does so
        # itself.
        self.host.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")

    def _configure_names(self) -> None:
        """Each namespace's own /etc/resolv.conf and /etc/hosts, and in inet a user for dante to know."""
        self.bind(self.host, "/etc/resolv.conf", at.RESOLV_CONF)
        self.bind(self.host, "/etc/hosts", at.HOSTS_FILE)
        self.bind(self.inet, "/etc/resolv.conf", f"nameserver {at.DNS_OF_PROXIES}\n")
        self.bind(self.inet, "/etc/hosts", "127.0.0.1 localhost\n")
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", at.PASSWORD], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
        passwd = (
            Path("/etc/passwd").read_text() + f"{at.USER}:x:64999:65534::/nonexistent:/usr/sbin/nologin\n"
        )
        shadow = Path("/etc/shadow").read_text() + f"{at.USER}:{hashed}:20000:0:99999:7:::\n"
        self.bind(self.inet, "/etc/passwd", passwd)
        self.bind(self.inet, "/etc/shadow", shadow, mode=0o600)

    def bind(self, namespace: Namespace, path: str, content: str, mode: int = 0o644) -> None:
        """Lay ``content`` over ``path`` for those inside only."""
        namespace.run("mount", "--bind", str(self.file(content, mode)), path)

    def file(self, content: str, mode: int = 0o644) -> Path:
        """A new file of root's that holds ``content``."""
        fd, name = tempfile.mkstemp(dir=self.place)
        with open(fd, "w") as file:
            file.write(content)
        os.chmod(name, mode)
        return Path(name)

    # Servers

    def _start_servers(self) -> None:
        place, inet = self.place, self.inet
        zone = self.file(json.dumps(at.ZONE))
        self.questions_log, self.events_log = place / "questions.jsonl", place / "events.jsonl"
        host_log = place / "host-events.jsonl"
        for log in (self.questions_log, self.events_log, host_log):
            log.touch()
        python = sys.executable
        dns = [python, str(PROGRAMS / "dns_server.py"), str(zone), str(self.questions_log)]
        self.serve(inet, *dns, at.DNS, at.DNS_OF_PROXIES, "8.8.8.8", at.GATEWAY6, ready=(at.DNS, 53))
        self.serve(self.host, *dns, "127.0.0.53", ready=("127.0.0.53", 53))
        tcp = [python, str(PROGRAMS / "tcp_server.py")]
        self.serve(
            inet, *tcp, str(self.events_log),
            f"echo={at.ECHO}", f"hold={at.HOLD}", f"reset_at_once={at.RESET_AT_ONCE}", f"count={at.COUNT}",
            f"speak_then_listen={at.SPEAK_THEN_LISTEN}", f"reset_after_byte={at.RESET_AFTER_BYTE}",
            f"pairs={at.PAIRS}", f"peer={at.PEER}", f"upload={at.UPLOAD}", f"socks4a={at.SOCKS4}",
            ready=(at.WEB, at.SOCKS4),
        )  # fmt: skip
        self.serve(
            self.host, *tcp, str(host_log),
            f"page=127.0.0.1@{at.HOST_LOOPBACK_PAGE}", f"page={at.HOST_PAGE}", ready=("127.0.0.1",
            at.HOST_PAGE),
        )  # fmt: skip

        self.serve(inet, "nginx", "-c", str(self.file(server_files.nginx(place))), ready=(at.WEB, at.HTTP))

        self.serve(inet, "microsocks", "-i", "::", "-p", str(at.SOCKS), ready=(at.PROXY, at.SOCKS))
        self.serve(
            inet, "microsocks", "-i", "::", "-p", str(at.SOCKS_AUTH), "-u", at.USER, "-P", at.PASSWORD,
            ready=(at.PROXY, at.SOCKS_AUTH),
        )  # fmt: skip
        # A proxy on the user's own machine. What it asks of name servers is not the graft's doing: it asks
        # another.
        other = self.file(f"nameserver {at.DNS_OF_PROXIES}\n")
        self.serve(
            self.host, "unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"',
            str(other), "microsocks", "-i", "127.0.0.1", "-p", str(at.SOCKS), ready=("127.0.0.1", at.SOCKS),
        )  # fmt: skip
        for port, method in ((at.DANTE, "none"), (at.DANTE_AUTH, "username")):
            config = self.file(server_files.danted(place, port, method))
            pid_file = place / f"danted-{port}.pid"
            self.serve(inet, "danted", "-f", str(config), "-p", str(pid_file), ready=(at.PROXY6, port))
        for port, authenticated in ((at.TINYPROXY, False), (at.TINYPROXY_AUTH, True)):
            log = place / f"tinyproxy-{port}.log"
            log.touch()
            shutil.chown(log, "nobody", "nogroup")
            config = self.file(server_files.tinyproxy(place, port, authenticated=authenticated))
            self.serve(inet, "tinyproxy", "-d", "-c", str(config), ready=(at.PROXY6, port))

    def serve(self, namespace: Namespace, *command: str, ready: tuple[str, int]) -> subprocess.Popen[bytes]:
        """Start a server inside, and wait until it takes connections. It dies with the lab, and with this
        process.
        """
        log = open(self.place / f"{Path(command[0]).name}-{len(self._servers)}.out", "wb")
        with log:
            server = subprocess.Popen(
                [*namespace.enter, "setpriv", "--pdeathsig=KILL", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._servers.append(server)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with namespace.socket(
                socket.AF_INET6 if ":" in ready[0] else socket.AF_INET, socket.SOCK_STREAM
            ) as probe:
                probe.settimeout(5)
                status = probe.connect_ex(ready)
            if status == 0:
                return server
            ended = server.poll() is not None
            if (
                ended
                or time.monotonic() > deadline
                or status not in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)
            ):
                said = Path(log.name).read_text(errors="replace")
                raise RuntimeError(f"{command[0]} does not serve {ready} ({os.strerror(status)}): {said}")
            time.sleep(0.01)

    # What happened

    def questions(self, since: float = 0.0, server: str | None = at.DNS) -> list[dict[str, Any]]:
        """DNS questions that were asked since ``since``, of the server that the host asks unless told."""
        return [
            q
            for q in _lines(self.questions_log)
            if q["time"] >= since and (server is None or q["server"] == server)
        ]

    def events(self, port: str, since: float = 0.0) -> list[dict[str, Any]]:
        """How connections to the behaviour ``port`` of tcp_server.py ended since ``since``."""
        return [
            event for event in _lines(self.events_log) if event["port"] == port and event["time"] >= since
        ]

    def close(self) -> None:
        for server in reversed(self._servers):
            # A session of its own each: nginx's workers and dante's children are in it.
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            server.wait(timeout=10)
        for namespace in (self.host, self.inet):
            namespace.close()
        shutil.rmtree(self.place, ignore_errors=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    with open(path) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]
