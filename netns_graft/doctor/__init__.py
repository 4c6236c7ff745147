"""What on this host helps or hinders grafting, and the cure. Changes nothing.

* ``finding``      what each check returns
* ``place``        where we run: as whom, in a graft, in a container, in a chroot
* ``namespaces``   user namespaces, sub-ids, and what the trials of ``linux/probes`` came to
* ``processes``    /proc, ptrace, seccomp: may we see who opened a socket
* ``network``      sysctls, conntrack, and rules that translate addresses (``nat`` follows them as the kernel does)
* ``engines``      podman, buildah, runc, crun, control groups
* ``hooks``        where hooks are read, and whether ours would fire
* ``examination``  all of them in order

A check is a function from what was read (or the root of a tree to read) to a ``Finding``. It never raises for what a
host is like: what it could not look at is "unknown", with the reason.
"""

from __future__ import annotations

from netns_graft.doctor.examination import Report, examine
from netns_graft.doctor.finding import Finding, Status

__all__ = ["Finding", "Report", "Status", "examine"]
