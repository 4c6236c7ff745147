"""Trials: what netns-graft needs of the kernel, really done in throw-away namespaces. A trial tells more than a file.

One child process does them in the order in which a graft needs them, in the same way that a graft does them: its own
user namespace (as root none), a network namespace, ``lo``, sock_diag, then pyroute2: veth, nftables, packet sockets,
at last a whole graft and one SYN through its cable. It reports each as a line of JSON on a pipe; when one that the
others need is refused, those are missing from the report. Everything goes with the child; only modules that the
kernel loaded for it stay, as they would after a graft.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netns_graft.linux import packet, sock_diag, syscalls, userns

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PTRACE_TRACEME, _PTRACE_CONT = 0, 7
_NETLINK_SOCK_DIAG = 4
_VETH, _MTU = "v0", 65535
_NO_ERROR = 0
_NFPROTO_INET, _META_L4PROTO = 1, 16
_DEADLINE = 10.0


@dataclass(slots=True, frozen=True)
class Trial:
    """How one went: ``errno`` 0 when it worked, -1 when it failed without one. ``detail`` is a few words."""

    name: str
    errno: int
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.errno == _NO_ERROR


@dataclass(slots=True)
class Trials:
    """What was reported. ``ended`` says how the child ended when that was not as it should."""

    done: dict[str, Trial]
    ended: str | None = None

    def get(self, name: str) -> Trial | None:
        return self.done.get(name)


class RunningTrials:
    """The child, at work. Call ``finish`` once."""

    def __init__(self, *, own_user_ns: bool) -> None:
        self._report_fd, report_fd = os.pipe()
        self._go_fd, go_fd = -1, -1
        go_fd, self._go_fd = os.pipe()
        self._own_user_ns = own_user_ns
        self._deadline = time.monotonic() + _DEADLINE
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._report_fd)
            os.close(self._go_fd)
            _become_trial(report_fd, go_fd, own_user_ns)
        os.close(report_fd)
        os.close(go_fd)

    def finish(self) -> Trials:
        """Wait for the end, at most ten seconds from the start."""
        trials = Trials({})
        data = b""
        try:
            while True:
                left = self._deadline - time.monotonic()
                if left <= 0 or not select.select([self._report_fd], [], [], left)[0]:
                    trials.ended = "it took too long"
                    break
                part = os.read(self._report_fd, 65536)
                if not part:
                    break
                data += part
                *lines, data = data.split(b"\n")
                for line in lines:
                    self._take(json.loads(line), trials)
        finally:
            os.close(self._report_fd)
            os.close(self._go_fd)
            if trials.ended:
                os.kill(self._pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code < 0 and trials.ended is None:
            trials.ended = f"it was ended by signal {-code}"
        return trials

    def _take(self, message: dict[str, Any], trials: Trials) -> None:
        trial = Trial(message["name"], message["errno"], message["detail"])
        trials.done[trial.name] = trial
        if trial.name == "user-namespace" and trial.ok and self._own_user_ns:
            try:
                how = userns.write_maps(self._pid)
                trials.done["id-maps"] = Trial("id-maps", 0, how)
            except OSError as error:
                trials.done["id-maps"] = Trial("id-maps", error.errno or -1, error.strerror or "")
            os.write(self._go_fd, b"g")


class _Refused(Exception):
    """A trial failed that the others need."""


class _Reporter:
    def __init__(self, report_fd: int) -> None:
        self._report_fd = report_fd

    def attempt(self, name: str, what: Callable[[], str | None], *, needed: bool = False) -> bool:
        number, detail = _NO_ERROR, ""
        try:
            detail = what() or ""
        except Exception as error:  # noqa: BLE001  # pyroute2 raises many kinds; each is this trial's answer
            number = getattr(error, "errno", None) or getattr(error, "code", None) or -1
            detail = _words(error)
        line = json.dumps({"name": name, "errno": number if isinstance(number, int) else -1, "detail": detail})
        os.write(self._report_fd, line.encode() + b"\n")
        if number != _NO_ERROR and needed:
            raise _Refused
        return number == _NO_ERROR


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        return error.strerror + where
    return str(error) or type(error).__name__


def _become_trial(report_fd: int, go_fd: int, own_user_ns: bool) -> None:
    """Never returns."""
    try:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        reporter = _Reporter(report_fd)
        reporter.attempt("ptrace", _ptrace)
        if own_user_ns:
            reporter.attempt("user-namespace", _new_user_namespace, needed=True)
            if os.read(go_fd, 1) != b"g":
                os._exit(0)
        else:
            reporter.attempt("user-namespace", lambda: in_child(_new_user_namespace))
        reporter.attempt("mounts", lambda: in_child(_mounts))
        reporter.attempt("network-namespace", _new_network_namespace, needed=True)
        reporter.attempt("loopback", _loopback_up, needed=True)
        reporter.attempt("sock-diag", _sock_diag)
        reporter.attempt("proc-net", _proc_net)
        reporter.attempt("pyroute2", _import_pyroute2, needed=True)
        reporter.attempt("veth", _veth)
        reporter.attempt("packet-sockets", _packet_sockets)
        reporter.attempt("tproxy", lambda: _nft_rule("prerouting", "filter", -150, "tproxy", "reg_port"))
        reporter.attempt("redirect", lambda: _nft_rule("prerouting", "nat", -100, "redir", "reg_proto_min"))
        reporter.attempt("graft", lambda: in_child(_graft))
    except _Refused:
        pass
    finally:
        os._exit(0)


def in_child(what: Callable[[], str | None]) -> str | None:
    """Do it in a fork, whose namespaces go with it. Raises what it raised, as an OSError."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.set_parent_death_signal(signal.SIGKILL)
            _Reporter(write_fd).attempt("child", what)
        finally:
            os._exit(0)
    os.close(write_fd)
    try:
        data = b""
        while part := os.read(read_fd, 65536):
            data += part
    finally:
        os.close(read_fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not data:
        raise OSError(errno.EIO, f"the trial was ended by signal {-code}" if code < 0 else "no answer")
    message = json.loads(data)
    if message["errno"]:
        raise OSError(message["errno"], message["detail"])
    return str(message["detail"])


def _new_user_namespace() -> None:
    syscalls.unshare(syscalls.CLONE_NEWUSER)


def _new_network_namespace() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)


def _mounts() -> None:
    """What the command's side of a graft does for a resolv.conf of its own."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    syscalls.mount("netns-graft", "/proc", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=64k,mode=0755")
    syscalls.umount("/proc", syscalls.MNT_DETACH)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    """(listener, a socket connected to it)"""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, socket.create_connection(listener.getsockname(), timeout=2.0)


def _sock_diag() -> str:
    listener, client = _connected_pair()
    diag_sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    with listener, client, diag_sock:
        diag_sock.settimeout(2.0)
        began = time.perf_counter()
        owner = sock_diag.find(diag_sock, socket.IPPROTO_TCP, *_tuple(client))
        micros = (time.perf_counter() - began) * 1e6
        if owner is None or owner.inode != os.fstat(client.fileno()).st_ino:
            raise OSError(errno.ENOENT, "a socket that exists was not found")
        return f"{micros:.0f} µs for one socket"


def _proc_net() -> None:
    """Without a look-up of ours: whether the socket's inode stands in the text."""
    listener, client = _connected_pair()
    with listener, client, open("/proc/thread-self/net/tcp", encoding="ascii", errors="replace") as file:
        inode = str(os.fstat(client.fileno()).st_ino)
        if not any(inode in line.split() for line in file):
            raise OSError(errno.ENOENT, "a socket that exists was not found")


def _tuple(client: socket.socket) -> tuple[bytes, int, bytes, int]:
    (source, source_port), (target, target_port) = client.getsockname(), client.getpeername()
    return socket.inet_aton(source), source_port, socket.inet_aton(target), target_port


def _import_pyroute2() -> str:
    import pyroute2  # 170 ms: in this process only

    return str(getattr(pyroute2, "__version__", ""))


def _veth() -> str:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("add", ifname=_VETH, kind="veth", mtu=_MTU, peer={"ifname": "eth0", "mtu": _MTU})
        for name in (_VETH, "eth0"):
            route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
    return f"MTU {_MTU}"


def _packet_sockets() -> None:
    sock = packet.open_tap(_VETH, b"\x02" + bytes(5))
    if sock is None:
        raise OSError(errno.EPERM, "packet sockets are refused")
    sock.close()


def _nft_rule(hook: str, kind: str, priority: int, expression: str, register: str) -> None:
    """A table of its own with one rule that ends in ``expression``, which takes a port from register 1."""
    from pyroute2.nftables.expressions import genex
    from pyroute2.nftables.main import NFTables

    def data(value: bytes) -> dict[str, Any]:
        return {"attrs": [("NFTA_DATA_VALUE", value)]}

    table = f"try-{expression}"
    tcp = [
        genex("meta", {"key": _META_L4PROTO, "dreg": 1}),
        genex("cmp", {"sreg": 1, "op": 0, "data": data(bytes([socket.IPPROTO_TCP]))}),
    ]
    end = {register: 1, "family": 0} if expression == "tproxy" else {register: 1}
    port = [genex("immediate", {"dreg": 1, "data": data(b"\x00\x01")}), genex(expression, end)]
    with NFTables(nfgen_family=_NFPROTO_INET) as nft:
        nft.table("add", name=table)
        nft.chain("add", table=table, name="c", hook=hook, type=kind, priority=priority, policy=1)
        nft.rule("add", table=table, chain="c", expressions=[tcp, port])


def _graft() -> str:
    """A whole graft, without a forwarder: F and W, and a SYN that leaves W and must be seen in F."""
    from netns_graft.linux import wiring as cables

    began = time.perf_counter()
    wiring = cables.build(hold=True, dns=True)
    millis = (time.perf_counter() - began) * 1000
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        # Nothing answers, and nothing can leave: the other end of the cable is all there is.
        sock.connect_ex(("192.0.2.1", 9))
        watched = wiring.tap_sock or wiring.listeners[0]
        if not select.select([watched], [], [], 2.0)[0]:
            raise OSError(errno.ETIMEDOUT, "a SYN from the workload's side was not seen on the forwarder's")
    return f"{millis:.0f} ms" + ("" if wiring.tap_sock else ", connections are accepted first")


def _ptrace() -> None:
    """A child asks to be traced by us and stops, as a command in ``--mode ptrace`` would."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if libc.ptrace(_PTRACE_TRACEME, 0, None, None) != 0:
                os._exit(ctypes.get_errno() & 0x7F)
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        continued = libc.ptrace(_PTRACE_CONT, pid, None, None)
        number = ctypes.get_errno()
        if continued != 0:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if continued != 0:
            raise OSError(number, os.strerror(number), "ptrace")
        return
    code = os.waitstatus_to_exitcode(status)
    if code > 0:
        raise OSError(code, os.strerror(code), "ptrace")
    raise OSError(errno.EIO, f"the traced child was ended by signal {-code}")
