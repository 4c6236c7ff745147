"""``netns-graft doctor`` on a real kernel, in namespaces made for each test, as whoever runs the tests.

As root a network namespace is made as it is; as anybody else in a user namespace with it, in which the caller plays
root. What is said about the host itself is asked without any.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap
from typing import Any

import pytest

IS_ROOT = os.geteuid() == 0
COMMAND = [sys.executable, "-m", "netns_graft"]
NEW = ["unshare", "--net", "--mount", "--propagation", "private"] + ([] if IS_ROOT else ["--user", "--map-root-user"])
STATUSES = {"ok", "warning", "problem", "unknown"}
# uid 0 in a user namespace, with no capability there: what netns-graft is to any ordinary user
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def shell(script: str, *prefix: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in fresh namespaces (or behind ``prefix``); "$@" in it is netns-graft."""
    words = [*(prefix or NEW), "sh", "-ec", textwrap.dedent(script), "sh", *COMMAND]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=environ or dict(os.environ)
    )


class Answer:
    """One ``doctor --json``."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == "", done.stderr
        self.status = done.returncode
        self.record: dict[str, Any] = json.loads(done.stdout)
        self.findings = {finding["id"]: finding for finding in self.record["findings"]}
        assert len(self.findings) == len(self.record["findings"])

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.findings[name]

    def bad(self) -> dict[str, str]:
        return {name: one["detail"] for name, one in self.findings.items() if one["status"] == "problem"}


def doctor(before: str = "", *prefix: str, environ: dict[str, str] | None = None) -> Answer:
    return Answer(shell(f'{before}\n"$@" doctor --json', *prefix, environ=environ))


def test_this_host_can_graft_and_every_word_of_the_schema_is_there() -> None:
    answer = Answer(subprocess.run([*COMMAND, "doctor", "--json"], capture_output=True, text=True, timeout=60))
    assert (answer.bad(), answer.status, answer.record["can_graft"]) == ({}, 0, True)
    assert (answer.record["schema"], answer.record["uid"]) == (1, os.geteuid())
    for finding in answer.record["findings"]:
        assert set(finding) == {"id", "title", "status", "detail", "cure", "evidence"}
        assert finding["status"] in STATUSES
        assert finding["detail"]
        assert finding["cure"] or finding["status"] in ("ok", "unknown"), finding
        assert not (finding["cure"] and finding["status"] == "ok"), finding
    for name in ("user-namespaces", "network-namespace", "veth", "tproxy", "packet-sockets", "graft", "ptrace"):
        assert answer[name]["status"] == "ok", answer[name]
    if not IS_ROOT:
        assert answer["nat-nftables"]["status"] == "unknown"
        assert answer["nat-nftables"]["cure"] == "sudo netns-graft doctor"


def test_lines() -> None:
    done = subprocess.run([*COMMAND, "doctor"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    starts = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert starts <= STATUSES
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_wrong_usage() -> None:
    done = subprocess.run([*COMMAND, "doctor", "--jsn"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("netns-graft: error: doctor takes no '--jsn'")


def nft(rules: str, hook: str = "postrouting", family: str = "ip", more: str = "", flags: str = "") -> str:
    """A script that loads one chain of nat rules. The own address 10.9.8.7 is there to be touched."""
    chain = f"chain c {{ type nat hook {hook} priority 100; {rules}\n }}"
    return (
        f"ip link set lo up; ip addr add 10.9.8.7/32 dev lo\n"
        f"nft -f - <<'END'\ntable {family} t {{ {flags}\n{more}\n{chain}\n}}\nEND\n"
    )


class TestRulesThatTranslate:
    @pytest.mark.parametrize(
        ("script", "line"),
        [
            (nft("ip saddr 127.0.0.1 snat to 172.31.5.9"), "ip t c: ip saddr 127.0.0.1 snat to 172.31.5.9"),
            (nft("ip saddr 127.0.0.0/8 masquerade"), "ip t c: ip saddr 127.0.0.0/8 masquerade"),
            (nft("masquerade fully-random"), "ip t c: masquerade fully-random"),
            (nft('oifname "lo" masquerade'), 'ip t c: oifname "lo" masquerade'),
            (nft('oifname { "lo", "x" } masquerade'), 'ip t c: oifname { "lo", "x" } masquerade'),
            (nft("ip saddr 10.9.8.0/24 masquerade"), "ip t c: ip saddr 10.9.8.0/24 masquerade"),
            (nft("ip saddr { 10.0.0.0/8, 192.0.2.1 } masquerade"),
             "ip t c: ip saddr { 10.0.0.0/8, 192.0.2.1 } masquerade"),
            (nft("ip saddr 127.0.0.1-127.0.0.9 masquerade"),
             "ip t c: ip saddr >= 127.0.0.1 ip saddr <= 127.0.0.9 masquerade"),
            (nft("tcp dport 80 redirect to :8080", "output"),
             "ip t c: meta l4proto tcp dport 80 redirect to :8080"),
            (nft("fib daddr type local tcp dport 5 dnat to 10.0.0.1:6", "output"),
             "ip t c: fib daddr type local meta l4proto tcp dport 5 dnat to 10.0.0.1:6"),
            (nft("jump d", more="chain d { masquerade\n }"), "ip t d: masquerade"),
            (nft("tcp dport vmap { 80 : jump d }", more="chain d { masquerade\n }"), "ip t d: masquerade"),
            (nft("ip6 saddr ::1 masquerade", family="inet"), "inet t c: ip6 saddr ::1 masquerade"),
            (nft("ip6 saddr ::/16 masquerade", family="ip6"), "ip6 t c: ip6 saddr ::/16 masquerade"),
        ],
    )  # fmt: skip
    def test_loopback_is_touched(self, script: str, line: str) -> None:
        answer = doctor(script)
        found = answer["nat-nftables"]
        assert (found["status"], found["evidence"]) == ("warning", [line])
        assert answer.status == 0  # a graft has a namespace of its own

    @pytest.mark.parametrize(
        "script",
        [
            nft('oifname "lo" accept; masquerade'),
            nft("ip saddr 127.0.0.0/8 return; ip saddr 10.0.0.0/8 return; masquerade"),
            nft('oifname != "lo" ip saddr 192.0.2.0/24 masquerade'),
            nft("ip saddr 172.16.0.0/12 masquerade"),
            nft("masquerade", flags="flags dormant;"),
            nft("redirect", "prerouting"),
            nft("ip saddr 10.9.8.0/24 ip saddr != { 10.9.0.0/16 } masquerade"),
            nft("jump d; masquerade", more='chain d { oifname "lo" accept\n }'),
        ],
    )
    def test_loopback_is_not(self, script: str) -> None:
        found = doctor(script)["nat-nftables"]
        assert (found["status"], found["cure"]) == ("ok", None)

    def test_what_touches_other_connections_of_the_host_is_shown(self) -> None:
        found = doctor(nft('oifname "eth0" masquerade'))["nat-nftables"]
        assert (found["status"], found["evidence"]) == ("ok", ['ip t c: oifname "eth0" masquerade'])

    def test_the_cure_cures(self) -> None:
        script = nft("ip saddr 127.0.0.1 masquerade")
        cure = doctor(script)["nat-nftables"]["cure"]
        command = cure.removeprefix("first in that chain: ").partition(";")[0].replace('"', '\\"')
        assert command.startswith("nft insert rule ")
        assert doctor(script + command)["nat-nftables"]["status"] == "ok"

    def test_many_rules_in_many_messages(self) -> None:
        more = "seq -f 'add rule ip t c ip saddr 192.0.2.1 tcp dport %g masquerade' 300 | nft -f -\n"
        last = "nft add rule ip t c ip saddr 127.0.0.1 masquerade\n"
        found = doctor(nft("ip saddr 127.0.0.5 masquerade") + more + last)["nat-nftables"]
        assert found["evidence"] == ["ip t c: ip saddr 127.0.0.1 masquerade"]


class TestSysctls:
    def test_route_localnet(self) -> None:
        found = doctor("echo 1 >/proc/sys/net/ipv4/conf/lo/route_localnet")["route-localnet"]
        assert found["status"] == "warning"
        assert found["detail"].startswith("on for lo: ")
        assert found["cure"] == "sudo sysctl -w net.ipv4.conf.lo.route_localnet=0"

    def test_nonlocal_bind(self) -> None:
        assert doctor("echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind")["nonlocal-bind"]["status"] == "warning"

    def test_rp_filter(self) -> None:
        script = "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$file; done"
        assert doctor(script)["rp-filter"]["detail"].startswith("strict on every interface")


def test_no_user_namespaces_allowed_is_a_problem_with_a_cure_and_exec_fails_alike() -> None:
    script = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all"
    answer = Answer(shell(f'{script} "$@" doctor --json', "unshare", "--user", "--map-root-user"))
    found = answer["user-namespaces"]
    assert (found["status"], answer.status, answer.record["can_graft"]) == ("problem", 1, False)
    assert found["detail"] == "none allowed (user.max_user_namespaces=0)"
    assert "sysctl -w user.max_user_namespaces=" in found["cure"]
    assert answer["veth"]["detail"] == "not tried, for user namespace was refused before"
    assert shell(f'{script} "$@" exec true', "unshare", "--user", "--map-root-user").returncode == 125


def test_a_limit_that_is_reached_is_told_as_used_up() -> None:
    script = "echo 1 >/proc/sys/user/max_user_namespaces; exec unshare --user --map-root-user"
    words = ["unshare", "--user", "--map-root-user", "sh", "-ec", script + ' "$@"', "sh", *POWERLESS, *COMMAND]
    answer = Answer(subprocess.run([*words, "doctor", "--json"], capture_output=True, text=True, timeout=60))
    assert (answer["user-namespaces"]["status"], answer.status) == ("problem", 1)
    assert answer["user-namespaces"]["detail"].startswith("used up: ")


class TestProc:
    MOUNT = (*NEW, "--pid", "--fork", "--kill-child")

    def test_hidepid(self) -> None:
        answer = doctor("mount -t proc -o hidepid=2 proc /proc", *self.MOUNT)
        found = answer["proc-mount"]
        if IS_ROOT:
            assert (found["status"], "hides nothing from root" in found["detail"]) == ("ok", True)
        else:
            assert (found["status"], found["cure"].split()[:2]) == ("warning", ["sudo", "mount"])
        assert answer.status == 0

    def test_without_anything_but_processes(self) -> None:
        answer = doctor("mount -t proc -o subset=pid proc /proc", *self.MOUNT)
        assert "subset=pid" in answer["proc-mount"]["detail"]
        assert answer["route-localnet"]["status"] == "unknown"
        assert answer["proc-net"]["status"] == "ok"  # each process's own is still there

    def test_none_at_all(self) -> None:
        answer = doctor("mount -t tmpfs none /proc", *self.MOUNT)
        assert answer["proc-mount"]["status"] == "warning"
        assert answer["seccomp"]["status"] == "unknown"
        assert answer.status == 1
        assert "graft" in answer.bad()


SECCOMP = """
import ctypes, os, struct, sys
# linux/filter.h: load the system call's number; the one given answers EPERM, every other is allowed
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
filters = ctypes.create_string_buffer(struct.pack("HL", len(steps), ctypes.addressof(program)))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, ctypes.addressof(filters), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
"""
NUMBERS = {"x86_64": {"ptrace": 101, "unshare": 272}, "aarch64": {"ptrace": 117, "unshare": 97}}


class TestSeccomp:
    def refuse(self, call: str) -> Answer:
        number = NUMBERS[platform.machine()][call]
        words = [sys.executable, "-c", SECCOMP, str(number), *COMMAND, "doctor", "--json"]
        return Answer(subprocess.run(words, capture_output=True, text=True, timeout=60))

    def test_ptrace_refused(self) -> None:
        answer = self.refuse("ptrace")
        assert (answer["ptrace"]["status"], answer.status) == ("warning", 0)
        assert answer["seccomp"]["detail"].endswith("perhaps by it: ptrace")
        assert answer["user-namespaces"]["status"] == "ok"

    def test_namespaces_refused(self) -> None:
        answer = self.refuse("unshare")
        assert answer.status == 1
        assert "seccomp" in answer["seccomp"]["cure"]
        assert answer.bad().keys() == ({"network-namespace", "mounts"} if IS_ROOT else {"user-namespaces"})
        if not IS_ROOT:
            assert answer["newuidmap"]["status"] == "warning"
            assert answer["user-namespaces"]["cure"].startswith("allow unshare")


class TestInside:
    def test_a_graft(self) -> None:
        words = [*COMMAND, "exec", "--", *COMMAND, "doctor", "--json"]
        answer = Answer(subprocess.run(words, capture_output=True, text=True, timeout=60))
        assert (answer.bad(), answer.status, answer.record["inside_graft"]) == ({}, 0, True)
        assert answer["place"]["detail"].startswith("running inside a graft")
        assert answer["graft"]["status"] == "ok"

    def test_a_container(self) -> None:
        script = "mount -t tmpfs none /run; touch /run/.containerenv"
        answer = doctor(script)
        assert (answer.record["container"], answer.status) == ("podman", 0)
        assert "inside a container (podman)" in answer["place"]["detail"]


def test_it_changes_nothing() -> None:
    """Sysctls, links, rules, mounts, tables, the home and the runtime directory: the same before and after."""
    done = shell(
        """
        ip link set lo up
        mount -t tmpfs none /run; mount -t tmpfs none /tmp
        mkdir /tmp/home /tmp/run
        export HOME=/tmp/home XDG_RUNTIME_DIR=/tmp/run
        look() {
            nft list ruleset; ip -d link; ip -4 route show table all; ip rule; cat /proc/self/mountinfo
            cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true
            find /proc/sys/net /proc/sys/user -type f ! -name '*_count' ! -name '*flush*' ! -name '*stable_secret' \
                ! -name nf_conntrack_buckets -exec grep -H '' {} + 2>/dev/null || true
            find /tmp/* /run /etc -newer /tmp/began ! -name before ! -name after 2>/dev/null || true
        }
        touch /tmp/began
        look | sort >/tmp/before
        "$@" doctor >/dev/null
        look | sort >/tmp/after
        diff /tmp/before /tmp/after
        test -s /tmp/before
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
