"""An OCI bundle with our hook in it: a second bundle beside it, for the first is not ours to change.

Paths in ``config.json`` that are meant from the bundle are made absolute. Only a bundle with a network namespace of
its own and nothing in it is grafted: one without would be on the host's network, and one with a path shares somebody
else's.
"""

from __future__ import annotations

import json
import os
from typing import Any

from netns_graft.engines.hook_files import INSIDE, Hook
from netns_graft.engines.podman_options import Verb
from netns_graft.errors import GraftError

# What follows the bundle on our command line goes to the runtime's own `run`.
RUNTIME = Verb(
    "run",
    frozenset({"d", "debug", "detach", "help", "keep", "no-new-keyring", "no-pivot", "no-subreaper", "systemd-cgroup"}),
    interspersed=False,
)
_LONGEST = 16 << 20  # bytes of a config.json


def write_grafted(bundle: str, directory: str, hook: Hook, *, hidden: bool = False) -> None:
    """``directory/config.json``: that of ``bundle`` with our hook before others. ``GraftError``.

    ``hidden``: its network can be reached from inside only, as it is with crun where we are not root.
    """
    config = read_config(bundle)
    refuse_network(config)
    _make_absolute(config, os.path.realpath(bundle))
    hooks = config.setdefault("hooks", {})
    for stage in (*hook.stages(), *([INSIDE] if hidden else [])):
        # Ours first: a hook that follows may already want the network.
        hooks[stage] = [hook.call(stage), *(hooks.get(stage) or [])]
    fd = os.open(f"{directory}/config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(config, file)


def read_config(bundle: str) -> dict[str, Any]:
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            data = file.read(_LONGEST + 1)
        config = json.loads(data)
    except OSError as error:
        raise GraftError(
            f"no OCI bundle: {path}: {error.strerror}", hint="a bundle is a directory with config.json and a rootfs"
        ) from None
    except ValueError as error:
        raise GraftError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("root", {}), dict):
        raise GraftError(f"{path}: not the configuration of a container")
    if not isinstance(config.get("hooks", {}), dict):
        raise GraftError(f"{path}: hooks is not a map of stages")
    return config


def refuse_network(config: dict[str, Any]) -> None:
    linux = config.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    for namespace in namespaces if isinstance(namespaces, list) else []:
        if isinstance(namespace, dict) and namespace.get("type") == "network":
            if namespace.get("path"):
                raise GraftError(
                    f"the bundle joins the network namespace {namespace['path']}, which is not its own",
                    hint="a graft needs an empty one: leave out the path",
                )
            return
    raise GraftError(
        "the bundle has no network namespace: it would be on the host's network",
        hint='add {"type": "network"} to linux.namespaces in config.json',
    )


def _make_absolute(config: dict[str, Any], bundle: str) -> None:
    root = config.setdefault("root", {"path": "rootfs"})
    root["path"] = os.path.join(bundle, str(root.get("path", "rootfs")))
    for mount in config.get("mounts") or []:
        options = mount.get("options") or []
        if mount.get("source") and (mount.get("type") == "bind" or "bind" in options or "rbind" in options):
            mount["source"] = os.path.join(bundle, mount["source"])
