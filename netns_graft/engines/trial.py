"""Proof that podman fires the hook: a container that says what network it was given.

Its root is an empty directory with the host's ``/usr`` in it, read-only, so there is nothing to pull, to build or to
remove from podman's storage. It asks for a graft by an annotation and prints its own ``/proc/net/dev``: with a graft
there is an ``eth0``, and without one, by ``--network=none``, nothing but the loopback.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netns_graft.engines.hook_files import ANNOTATIONS

_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DIRECTORIES = ("dev", "etc", "proc", "run", "sys", "tmp", "usr")
_SECONDS = 90
_ENOUGH = 1024
_INTERFACE = re.compile(r"^\s*eth0:", re.MULTILINE)


@dataclass(slots=True, frozen=True)
class Verdict:
    """``fired``: None when the container did not run for a reason that is not ours. ``words`` are podman's."""

    fired: bool | None
    words: str


def try_podman(podman: str, options: Sequence[str], environ: Mapping[str, str], directory: str) -> Verdict:
    """Run the trial container with these further options of podman's; ``directory`` gets what it needs for a while."""
    with tempfile.TemporaryDirectory(prefix="trial-", dir=directory) as place:
        root = f"{place}/root"
        _make_root(root)
        command = [
            podman, "run", "--rm", "--network=none", "--security-opt=label=disable", "--volume=/usr:/usr:ro",
            *_limits(), f"--annotation={ANNOTATIONS}default=deny", *options,
            "--rootfs", root, "/usr/bin/cat", "/proc/net/dev",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True,
                timeout=_SECONDS, text=True, errors="replace", check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Verdict(None, f"podman did not finish within {_SECONDS} seconds")
        except OSError as error:
            return Verdict(None, f"{podman}: {error.strerror}")
    if done.returncode == 0:
        return Verdict(_INTERFACE.search(done.stdout) is not None, "")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    words = next((line for line in lines if "netns-graft" in line), lines[-1] if lines else "no word from podman")
    return Verdict(None, words.removeprefix("Error: "))


def runtime_of(podman: str, environ: Mapping[str, str]) -> str | None:
    """The OCI runtime that podman uses by default, by its name; None when podman does not tell."""
    try:
        done = subprocess.run(
            [podman, "info", "--format={{.Host.OCIRuntime.Name}}"],
            env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, text=True, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _limits() -> list[str]:
    """Root's podman raises limits to a million, which root may not where a container plays the host. The trial needs
    next to nothing.
    """
    if os.geteuid() != 0:
        return []
    given = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        _, most = resource.getrlimit(number)
        limit = _ENOUGH if most == resource.RLIM_INFINITY else min(most, _ENOUGH)
        given.append(f"--ulimit={name}={limit}:{limit}")
    return given


def _make_root(root: str) -> None:
    """The root of a system whose programs and libraries all lie below /usr, or lead there."""
    os.mkdir(root, 0o755)
    for name in _DIRECTORIES:
        os.mkdir(f"{root}/{name}", 0o755)
    for name in _LINKS:
        os.symlink(f"usr/{name}", f"{root}/{name}")
