"""All checks in the order in which they are told. The trials and the engines work while files are read."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netns_graft import __version__
from netns_graft.doctor import engines, hooks, namespaces, network, place, processes
from netns_graft.doctor.finding import Finding, Status
from netns_graft.engines import containers_conf
from netns_graft.linux import xt_rules
from netns_graft.linux.probes import RunningTrials

SCHEMA = 1


@dataclass(slots=True, frozen=True)
class Report:
    place: place.Place
    findings: tuple[Finding, ...]

    @property
    def can_graft(self) -> bool:
        return not any(finding.status is Status.PROBLEM for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """What ``--json`` prints: docs/doctor.md."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "can_graft": self.can_graft,
            "uid": self.place.uid,
            "inside_graft": self.place.inside_graft,
            "container": self.place.container,
            "findings": [finding.record() for finding in self.findings],
        }


def examine(environ: Mapping[str, str], root: str = "/") -> Report:
    """Look at this host. ``root`` is where files are read; trials and engines are always this machine's own."""
    uid = os.geteuid()
    here = place.look(root, environ, uid)
    # Before the trials: they may make the kernel load nf_tables, and then there would be something to ask.
    rules = [
        network.nftables(root, here),
        network.iptables(root, here, xt_rules.IPV4),
        network.iptables(root, here, xt_rules.IPV6),
    ]
    trials_at_work = RunningTrials(own_user_ns=not here.powerful)
    asking = engines.Asking(shutil.which, environ)
    config = containers_conf.read(root, environ, uid)
    sysctls = [
        network.route_localnet(root),
        network.rp_filter(root),
        network.nonlocal_bind(root),
        network.conntrack(root),
    ]
    programs = asking.answers()
    trials = trials_at_work.finish()
    findings = [
        place.finding(here),
        namespaces.user_namespaces(root, here, trials),
        namespaces.sub_ids(root, here, _names(uid), trials),
        namespaces.newuidmap(here, shutil.which),
        *namespaces.trial_findings(here, trials),
        processes.proc_mount(root, here),
        processes.proc_net(trials),
        processes.sock_diag(trials),
        processes.ptrace(root, trials),
        processes.seccomp(here, trials),
        *rules,
        *sysctls,
        *(engines.program(programs[name]) for name in engines.PROGRAMS),
        engines.control_groups(root, here, programs, config),
        hooks.directories(root, config),
        hooks.installed(root, environ, config, programs),
    ]
    return Report(here, tuple(findings))


def _names(uid: int) -> set[str]:
    """How /etc/subuid may name the user."""
    try:
        return {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        return {str(uid)}
