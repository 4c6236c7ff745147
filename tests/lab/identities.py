"""Who runs the program under test: an ordinary user, the same without subordinate ids, and root."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """A user with a home and a runtime directory of its own for this session."""

    name: str
    uid: int
    gid: int
    home: Path
    runtime_dir: Path

    @property
    def become(self) -> list[str]:
        """The command line that drops everything root has; for root itself, nothing."""
        if self.uid == 0:
            return []
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--inh-caps=-all"]

    def environment(self) -> dict[str, str]:
        """What this user would have after a login, and the mark by which the leak check knows our
        processes.
        """
        mine = {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "SHELL": "/bin/bash",
            "LANG": "C.UTF-8", "TERM": "xterm",
            "XDG_RUNTIME_DIR": str(self.runtime_dir),
        }  # fmt: skip
        if mark := os.environ.get("NETNS_GRAFT_TEST_MARK"):
            mine["NETNS_GRAFT_TEST_MARK"] = mark
        return mine

    def own_directory(self, path: Path) -> Path:
        """``path`` as a directory that only this user may use."""
        path.mkdir(mode=0o700)
        os.chown(path, self.uid, self.gid)
        return path


def make_identities(place: Path) -> dict[str, Identity]:
    """The three, by the short names that the tests use. ``place`` gets their directories."""
    identities = {}
    for short, login in (("user", "graft-test"), ("nosub", "graft-nosub"), ("root", "root")):
        try:
            entry = pwd.getpwnam(login)
        except KeyError:
            raise RuntimeError(f"no user {login}: tests/prepare makes it") from None
        identity = Identity(
            login, entry.pw_uid, entry.pw_gid, place / f"home-{short}", place / f"run-{short}"
        )
        identity.own_directory(identity.home)
        identity.own_directory(identity.runtime_dir)
        identities[short] = identity
    return identities


def installed_command() -> str:
    """``netns-graft`` by absolute path: the one in the environment that runs the tests."""
    beside = Path(sys.executable).parent / "netns-graft"
    found = str(beside) if beside.exists() else shutil.which("netns-graft")
    if found is None:
        raise RuntimeError("netns-graft is not installed in the environment that runs the tests")
    return found
