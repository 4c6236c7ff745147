"""Each check, from what was read to its finding: every cause has its own words and a cure that cures it."""

import errno
import os

import pytest

from netns_graft.cli import doctor as command
from netns_graft.doctor import engines, namespaces, network, place, processes
from netns_graft.doctor.engines import Program
from netns_graft.doctor.examination import Report
from netns_graft.doctor.finding import Finding, Status
from netns_graft.doctor.place import Place
from netns_graft.engines.containers_conf import Engine
from netns_graft.linux.host_files import parse_mounts
from netns_graft.linux.nat_rules import Action, Chain, Rule, Table
from netns_graft.linux.probes import Trial, Trials

USER, ROOT = Place(1000), Place(0, powerful=True)


def write(root, path, text):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(str(text))


def trials(**errors):
    """Trials by name with their errno; 0 is success."""
    done = {}
    for key, number in errors.items():
        name = key.replace("_", "-")
        done[name] = Trial(name, number, os.strerror(number) if number else "")
    return Trials(done)


class TestUserNamespaces:
    def look(self, tmp_path, number, where=USER, after=0, **sysctls):
        for name, value in sysctls.items():
            write(tmp_path, f"proc/sys/{'user' if name.startswith('max') else 'kernel'}/{name}", value)
        done = trials(user_namespace=number, network_namespace=after)
        return namespaces.user_namespaces(str(tmp_path), where, done)

    def test_allowed(self, tmp_path):
        finding = self.look(tmp_path, 0, max_user_namespaces=15000)
        assert (finding.status, finding.detail, finding.cure) == (Status.OK, "15000 allowed", None)

    @pytest.mark.parametrize(
        ("number", "sysctls", "words", "cure"),
        [
            (errno.ENOSPC, {"max_user_namespaces": 0}, "none allowed", "user.max_user_namespaces="),
            (errno.ENOSPC, {"max_user_namespaces": 9}, "used up", "lsns -t user"),
            (errno.EPERM, {"unprivileged_userns_clone": 0}, "only root", "unprivileged_userns_clone=1"),
            (errno.EPERM, {"apparmor_restrict_unprivileged_userns": 1}, "AppArmor", "unprivileged_userns=0"),
            (errno.EPERM, {}, "security module", "journalctl"),
            (errno.ENOSYS, {}, "kernel has none", "CONFIG_USER_NS"),
            (errno.ENOMEM, {}, "cannot allocate memory", "as root"),
        ],
    )
    def test_refused(self, tmp_path, number, sysctls, words, cure):
        finding = self.look(tmp_path, number, **sysctls)
        assert finding.status is Status.PROBLEM
        assert words in finding.detail
        assert cure in finding.cure
        as_root = self.look(tmp_path, number, ROOT, **sysctls)
        assert as_root.status is Status.WARNING
        assert "root needs none" in as_root.detail

    @pytest.mark.parametrize(
        ("where", "words"), [(Place(1, chroot=True), "chroot"), (Place(1, seccomp=2), "seccomp filter")]
    )
    def test_refused_by_where_we_are(self, tmp_path, where, words):
        assert words in self.look(tmp_path, errno.EPERM, where).detail

    def test_apparmor_lets_them_be_made_and_takes_their_power(self, tmp_path):
        finding = self.look(tmp_path, 0, after=errno.EACCES, apparmor_restrict_unprivileged_userns=1)
        assert (finding.status, "AppArmor" in finding.detail) == (Status.PROBLEM, True)

    def test_in_a_container_the_cure_is_the_hosts(self, tmp_path):
        finding = self.look(tmp_path, errno.ENOSPC, Place(1, container="podman"), max_user_namespaces=0)
        assert finding.cure.startswith("on the host: ")

    def test_not_tried(self, tmp_path):
        ended = Trials({}, "it was ended by signal 31")
        finding = namespaces.user_namespaces(str(tmp_path), USER, ended)
        assert (finding.status, "signal 31" in finding.detail) == (Status.UNKNOWN, True)


class TestSubIds:
    OWNERS = frozenset({"1000", "alice"})

    def look(self, tmp_path, mapped="sub-ids", where=USER):
        done = Trials({"id-maps": Trial("id-maps", 0, mapped)})
        return namespaces.sub_ids(str(tmp_path), where, set(self.OWNERS), done)

    def test_there(self, tmp_path):
        write(tmp_path, "etc/subuid", "alice:100000:65536\n1000:200000:10\n")
        write(tmp_path, "etc/subgid", "alice:100000:65536\n")
        finding = self.look(tmp_path)
        assert (finding.status, finding.detail) == (Status.OK, "65546 uids, 65536 gids for alice")
        assert self.look(tmp_path, "one id").status is Status.WARNING
        assert self.look(tmp_path, "one id", Place(1000, own_user_namespace=True)).status is Status.OK

    def test_none(self, tmp_path):
        write(tmp_path, "etc/subuid", "bob:100000:65536\n")
        finding = self.look(tmp_path, "one id")
        assert (finding.status, finding.cure.split()[-1]) == (Status.WARNING, "alice")
        write(tmp_path, "etc/subuid", "alice:100000:65536\n")
        assert "/etc/subgid" in self.look(tmp_path, "one id").detail

    def test_a_line_that_cannot_be_used(self, tmp_path):
        write(tmp_path, "etc/subuid", "alice:100000-165535\n")
        finding = self.look(tmp_path, "one id")
        assert (finding.status, finding.evidence) == (Status.WARNING, ("alice:100000-165535",))

    def test_refused(self, tmp_path):
        done = trials(id_maps=errno.EPERM)
        assert namespaces.sub_ids(str(tmp_path), USER, set(self.OWNERS), done).status is Status.PROBLEM

    def test_root(self, tmp_path):
        assert namespaces.sub_ids(str(tmp_path), ROOT, {"root"}, Trials({})).status is Status.OK


class TestNewuidmap:
    def test_absent(self):
        finding = namespaces.newuidmap(USER, lambda _name: None)
        assert (finding.status, "install uidmap" in finding.cure) == (Status.WARNING, True)

    def test_without_power(self, tmp_path):
        (tmp_path / "newuidmap").touch()
        finding = namespaces.newuidmap(USER, lambda name: str(tmp_path / "newuidmap"))
        assert (finding.status, finding.cure) == (Status.WARNING, f"sudo chmod u+s {tmp_path}/newuidmap")

    def test_gone_meanwhile(self):
        finding = namespaces.newuidmap(USER, lambda name: f"/nowhere/{name}")
        assert finding.status is Status.UNKNOWN


class TestTrials:
    ALL = ("network_namespace", "mounts", "pyroute2", "veth", "tproxy", "redirect", "packet_sockets", "graft")

    def findings(self, **errors):
        found = namespaces.trial_findings(USER, trials(**errors))
        return {finding.id: finding for finding in found}

    def test_all_well(self):
        found = self.findings(**dict.fromkeys(self.ALL, 0))
        assert {finding.status for finding in found.values()} == {Status.OK}

    def test_tproxy_and_redirect(self):
        found = self.findings(tproxy=errno.EOPNOTSUPP, redirect=0)
        assert (found["tproxy"].status, "redirect works" in found["tproxy"].detail) == (Status.WARNING, True)
        assert self.findings(tproxy=errno.EOPNOTSUPP, redirect=errno.ENOENT)["tproxy"].status is Status.PROBLEM

    def test_packet_sockets_can_be_done_without(self):
        assert self.findings(packet_sockets=errno.EPERM)["packet-sockets"].status is Status.WARNING

    def test_what_came_after_a_refusal_is_unknown(self):
        found = self.findings(network_namespace=errno.ENOSPC)
        assert found["network-namespace"].status is Status.PROBLEM
        assert found["veth"].detail == "not tried, for network namespace was refused before"


class TestProcesses:
    def mount(self, tmp_path, options, where=USER):
        write(tmp_path, "proc/self/mountinfo", f"22 27 0:21 / /proc rw - proc proc rw{options}\n")
        return processes.proc_mount(str(tmp_path), where)

    def test_proc(self, tmp_path):
        assert self.mount(tmp_path, "").status is Status.OK
        assert self.mount(tmp_path, ",hidepid=0").status is Status.OK
        hidden = self.mount(tmp_path, ",hidepid=2")
        assert (hidden.status, "hidepid=invisible" in hidden.detail) == (Status.WARNING, True)
        assert self.mount(tmp_path, ",hidepid=invisible", ROOT).status is Status.OK
        assert self.mount(tmp_path, ",hidepid=2", Place(0, powerful=True, own_user_namespace=True)).cure
        assert "subset=pid" in self.mount(tmp_path, ",subset=pid").detail

    def test_no_proc(self, tmp_path):
        assert processes.proc_mount(str(tmp_path), USER).status is Status.WARNING
        write(tmp_path, "proc/self/mountinfo", "")
        assert processes.proc_mount(str(tmp_path), USER).status is Status.WARNING

    def test_sock_diag_has_a_fallback(self):
        found = processes.sock_diag(trials(sock_diag=errno.ENOENT, proc_net=0))
        assert (found.status, "/proc/net is read instead" in found.detail) == (Status.WARNING, True)
        assert "no flow can be attributed" in processes.sock_diag(trials(sock_diag=2, proc_net=2)).detail
        assert processes.sock_diag(Trials({})).status is Status.UNKNOWN
        assert processes.proc_net(Trials({})).status is Status.UNKNOWN

    @pytest.mark.parametrize(("scope", "cure"), [(3, "ptrace_scope=1"), (0, "SYS_PTRACE"), (None, "SYS_PTRACE")])
    def test_ptrace(self, tmp_path, scope, cure):
        if scope is not None:
            write(tmp_path, "proc/sys/kernel/yama/ptrace_scope", scope)
        found = processes.ptrace(str(tmp_path), trials(ptrace=errno.EPERM))
        assert (found.status, cure in found.cure) == (Status.WARNING, True)
        assert processes.ptrace(str(tmp_path), trials(ptrace=0)).status is Status.OK

    def test_seccomp(self):
        done = trials(ptrace=errno.EPERM, veth=0)
        assert processes.seccomp(Place(1, seccomp=0), done).status is Status.OK
        assert processes.seccomp(Place(1, seccomp=2), trials(veth=0)).status is Status.OK
        found = processes.seccomp(Place(1, seccomp=2), done)
        assert (found.status, found.detail.rpartition(": ")[2]) == (Status.WARNING, "ptrace")
        assert processes.seccomp(Place(1), done).status is Status.UNKNOWN


class TestNetwork:
    def interfaces(self, tmp_path, name, **values):
        for interface, value in values.items():
            write(tmp_path, f"proc/sys/net/ipv4/conf/{interface}/{name}", value)
        return str(tmp_path)

    def test_route_localnet(self, tmp_path):
        found = network.route_localnet(self.interfaces(tmp_path, "route_localnet", all=0, eth0=1, lo=1))
        assert found.cure == "sudo sysctl -w net.ipv4.conf.eth0.route_localnet=0 net.ipv4.conf.lo.route_localnet=0"
        assert network.route_localnet(str(tmp_path / "absent")).status is Status.UNKNOWN

    def test_rp_filter_is_the_larger_of_two(self, tmp_path):
        root = self.interfaces(tmp_path, "rp_filter", all=0, eth0=1, lo=0)
        assert network.rp_filter(root).detail.startswith("off on lo; strict on eth0;")
        self.interfaces(tmp_path, "rp_filter", all=2)
        assert network.rp_filter(root).detail.startswith("loose on every interface")

    def test_nonlocal_bind(self, tmp_path):
        assert network.nonlocal_bind(str(tmp_path)).status is Status.OK
        write(tmp_path, "proc/sys/net/ipv6/ip_nonlocal_bind", 1)
        assert network.nonlocal_bind(str(tmp_path)).cure == "sudo sysctl -w net.ipv6.ip_nonlocal_bind=0"

    def test_conntrack(self, tmp_path):
        root = str(tmp_path)
        assert network.conntrack(root).detail.startswith("not loaded")
        write(tmp_path, "proc/sys/net/netfilter/nf_conntrack_max", 1000)
        assert network.conntrack(root).status is Status.UNKNOWN
        write(tmp_path, "proc/sys/net/netfilter/nf_conntrack_count", 899)
        assert network.conntrack(root).status is Status.OK
        assert network.conntrack(root).detail == "899 of 1000 connections"
        write(tmp_path, "proc/sys/net/netfilter/nf_conntrack_count", 900)
        assert network.conntrack(root).cure == "sudo sysctl -w net.netfilter.nf_conntrack_max=4000"

    def test_the_cure_fits_who_keeps_the_rule(self):
        table = Table("ip", "nat", {"P": Chain("P", [Rule("masquerade", (), Action.TRANSLATE)], "postrouting")})
        found = network.judged("nat-nftables", "t", [table], [])
        assert (found.status, found.evidence) == (Status.WARNING, ("ip nat P: masquerade",))
        assert 'nft insert rule ip nat P oifname "lo" accept' in found.cure
        assert "iptables-legacy -t nat -I P -o lo -j ACCEPT" in network.judged("nat-iptables", "t", [table], []).cure
        table.family = "ip6"
        assert "ip6tables-legacy" in network.judged("nat-ip6tables", "t", [table], []).cure


class TestPlace:
    def look(self, tmp_path, environ=None, uid=0):
        return place.look(str(tmp_path), environ or {}, uid)

    def test_of_nothing(self, tmp_path):
        assert self.look(tmp_path, uid=5) == Place(5)

    def test_root(self, tmp_path):
        write(tmp_path, "proc/self/status", "CapEff:\t000001ffffffffff\nSeccomp:\t2\nNoNewPrivs:\t1\n")
        write(tmp_path, "proc/self/uid_map", "         0       1000          1\n")
        write(tmp_path, "proc/self/mountinfo", "1 0 8:1 / /proc rw - proc proc rw\n")
        here = self.look(tmp_path)
        assert here == Place(
            0, powerful=True, own_user_namespace=True, chroot=True, seccomp=2, no_new_privileges=True
        )
        assert "as root, in a user namespace" in place.finding(here).detail

    @pytest.mark.parametrize(("path", "name"), [("run/.containerenv", "podman"), (".dockerenv", "docker")])
    def test_containers_by_their_mark(self, tmp_path, path, name):
        write(tmp_path, path, "")
        assert self.look(tmp_path).container == name

    def test_containers_by_their_word(self, tmp_path):
        assert self.look(tmp_path, {"container": "lxc"}).container == "lxc"
        assert self.look(tmp_path, {"container": " "}).container == "container"
        write(tmp_path, "run/systemd/container", "systemd-nspawn\n")
        assert self.look(tmp_path).container == "systemd-nspawn"


class TestEngines:
    def ask(self, tmp_path, script):
        program = tmp_path / "podman"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        asking = engines.Asking(lambda name: str(program) if name == "podman" else None, os.environ)
        answers = asking.answers()
        assert answers["runc"] == Program("runc", None)
        return engines.program(answers["podman"])

    def test_version(self, tmp_path):
        finding = self.ask(tmp_path, 'test "$1" = --version && echo podman version 5.2.1-rc1')
        assert (finding.status, finding.detail) == (Status.OK, f"5.2.1-rc1 ({tmp_path}/podman)")

    def test_a_program_that_fails(self, tmp_path):
        finding = self.ask(tmp_path, "echo one >&2; echo two >&2; echo three >&2; exit 3")
        assert (finding.status, finding.evidence) == (Status.WARNING, ("two", "three"))
        assert "ended with 3" in finding.detail

    def test_a_program_that_hangs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, "_SECONDS", 0.05)
        assert "no answer" in self.ask(tmp_path, "sleep 60 & wait").detail

    def test_a_program_that_is_none(self, tmp_path):
        program = tmp_path / "podman"
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
        answers = engines.Asking(lambda name: str(program), os.environ).answers()
        assert {engines.program(one).status for one in answers.values()} == {Status.WARNING}

    def test_looking_makes_no_state_directory_of_crun(self, tmp_path):
        # crun makes $XDG_RUNTIME_DIR/crun even when asked for its version
        program, runtime_dir = tmp_path / "crun", tmp_path / "run"
        runtime_dir.mkdir()
        program.write_text('#!/bin/sh\nmkdir "$XDG_RUNTIME_DIR/crun" 2>/dev/null\necho crun version 1.8.1\n')
        program.chmod(0o755)
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir)}
        asking = engines.Asking(lambda name: str(program) if name == "crun" else None, environ)
        assert asking.answers()["crun"].version == "1.8.1"
        assert os.listdir(runtime_dir) == []

    V1 = "1 2 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    V2 = "1 2 0:1 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"

    def test_modes(self):
        modes = [engines.control_group_mode(parse_mounts(text)) for text in (self.V2, self.V1 + self.V2, self.V1, "")]
        assert modes == ["unified", "hybrid", "v1", None]

    def test_rootless_crun_refuses_hybrid(self, tmp_path):
        write(tmp_path, "proc/self/mountinfo", self.V1 + self.V2)
        both = {name: Program(name, f"/usr/bin/{name}") for name in engines.PROGRAMS}
        alone = {**both, "runc": Program("runc", None)}

        def look(where, programs, engine):
            return engines.control_groups(str(tmp_path), where, programs, engine)

        found = look(USER, both, Engine())
        assert (found.status, found.cure.startswith("podman --runtime runc, or boot")) == (Status.WARNING, True)
        assert look(USER, alone, Engine()).cure.startswith("boot with")
        assert look(USER, both, Engine(runtime="runc")).status is Status.OK
        assert look(ROOT, both, Engine()).status is Status.OK


class TestCommandLine:
    FINDING = Finding("x", "title", Status.WARNING, "a\x1b[31m\nb", "do\x07it", ("rule\r1",))

    def test_lines_are_aligned_and_harmless(self):
        short = Finding("y", "a longer title", Status.OK, "well")
        assert list(command.lines(Report(USER, (self.FINDING, short)))) == [
            "warning  title           a\\x1b[31m\\nb",
            "         | rule\\r1",
            "         cure: do\\x07it",
            "ok       a longer title  well",
        ]

    def test_a_problem_means_no(self):
        assert Report(USER, (self.FINDING,)).can_graft
        problem = Finding("x", "t", Status.PROBLEM, "d", "c")
        assert not Report(USER, (self.FINDING, problem)).can_graft

    def test_record(self):
        record = Report(Place(7, inside_graft=True, container="podman"), (self.FINDING,)).record()
        assert list(record) == ["schema", "version", "can_graft", "uid", "inside_graft", "container", "findings"]
        assert (record["schema"], record["uid"], record["inside_graft"]) == (1, 7, True)
        assert record["findings"][0]["evidence"] == ["rule\r1"]
