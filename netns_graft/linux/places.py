"""Where our own files are: sockets in the runtime directory, logs and journals in the state directory.

All are 0700 and the user's own. The user is the one of the *host*: inside a container engine's user namespace we look
like root, so a hook is told its runtime directory and does not ask here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

_NAME = "netns-graft"


# Where the C library and others ask for names without being told to: sockets that may or may not be there.
NAME_SERVICES = (
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/avahi-daemon/socket",
)


def runtime_dir(environ: Mapping[str, str] = os.environ) -> str:
    """The directory of our sockets, made if need be. OSError when it cannot be, or belongs to somebody else."""
    given, uid = environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()
    if uid == 0:
        place = f"/run/{_NAME}"
    elif os.path.isabs(given):
        place = f"{given}/{_NAME}"
    elif os.path.isdir(f"/run/user/{uid}"):
        place = f"/run/user/{uid}/{_NAME}"
    else:
        place = f"/tmp/{_NAME}-{uid}"
    return private_directory(place)


def workloads_dir(runtime: str) -> str:
    """Where every forwarder has its status socket, called after its workload. OSError."""
    return private_directory(f"{runtime}/workloads")


def state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """The directory of logs and flow journals, made if need be. OSError."""
    return private_directory(_xdg(environ, "XDG_STATE_HOME", ".local/state", "/var/lib"))


def config_dir(environ: Mapping[str, str] = os.environ) -> str:
    """The directory of the user's policy. Not made: we only read there."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config", "/etc")


def private_directory(path: str) -> str:
    """``path`` as a directory that only we may use. OSError, also when somebody else made it first."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "not a directory", path)
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to somebody else", path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(path, 0o700)
    return path


def _xdg(environ: Mapping[str, str], variable: str, below_home: str, of_root: str) -> str:
    given, home = environ.get(variable, ""), environ.get("HOME", "")
    if os.path.isabs(given):
        return f"{given}/{_NAME}"
    if os.path.isabs(home) and (os.geteuid() != 0 or home != "/"):
        return f"{home}/{below_home}/{_NAME}"
    return f"{of_root}/{_NAME}"
