"""containers.conf(5), as far as hooks and runtimes go: which files podman reads, and what they come to.

Facts, seen on podman 4.3.1 and read in containers/common: a later file's ``hooks_dir`` *replaces* an earlier one's,
unless the array holds ``{append = true}`` (since podman 5): then it adds to what was there, also in files that come
later. Drop-ins are read in the order of their names, after the ``containers.conf`` beside them; root reads nothing
below its home; ``CONTAINERS_CONF`` takes the place of all; a directory that does not exist is passed over without a
word. ``podman build`` reads none of it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netns_graft.errors import ConfigError
from netns_graft.linux import host_files

DEFAULT_HOOKS_DIR = "/usr/share/containers/oci/hooks.d"
ADMINISTRATORS_HOOKS_DIR = "/etc/containers/oci/hooks.d"  # podman's manual gives it to them; nothing reads it unasked
SYSTEMS = (
    "/usr/share/containers/containers.conf",
    "/etc/containers/containers.conf",
    "/etc/containers/containers.conf.d",
)


@dataclass(slots=True)
class Engine:
    """``faults``: files that are there and could not be used, with why."""

    hooks_dirs: list[str] = field(default_factory=lambda: [DEFAULT_HOOKS_DIR])
    runtime: str | None = None
    set_by: str | None = None  # the last file that said something about hooks_dir
    faults: list[str] = field(default_factory=list)


def config_dir(environ: Mapping[str, str]) -> str:
    return environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")


def files(root: str, environ: Mapping[str, str], uid: int) -> list[str]:
    """Those that may be there, in the order in which they are read."""
    override = environ.get("CONTAINERS_CONF_OVERRIDE")
    last = [override] if override else []
    if only := environ.get("CONTAINERS_CONF"):
        return [only, *last]
    *found, directory = SYSTEMS
    found += _drop_ins(root, directory)
    if uid != 0:
        own = os.path.join(config_dir(environ), "containers")
        found += [f"{own}/containers.conf", *_drop_ins(root, f"{own}/containers.conf.d")]
    return found + last


def _drop_ins(root: str, directory: str) -> list[str]:
    try:
        names = os.listdir(os.path.join(root, directory.lstrip("/")))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in sorted(names) if name.endswith(".conf")]


def read(root: str, environ: Mapping[str, str], uid: int, *, without: str | None = None) -> Engine:
    """What the files below ``root`` come to for this user, as if the one called ``without`` were not there."""
    engine = Engine()
    append = False
    for path in files(root, environ, uid):
        if path == without:
            continue
        try:
            text = host_files.read(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            engine.faults.append(f"{path}: {_reason(error)}")
            continue
        try:
            append = take(engine, path, text, append)
        except ValueError as error:
            engine.faults.append(f"{path}: {error}")
    return engine


def hooks_dirs(environ: Mapping[str, str], uid: int, *, without: str | None = None) -> Engine:
    """As ``read`` of this machine; ``ConfigError`` when a file cannot be used: podman would refuse to start."""
    engine = read("/", environ, uid, without=without)
    if engine.faults:
        raise ConfigError(engine.faults[0], hint="correct the file; podman goes by it too")
    return engine


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return str(error)


def take(engine: Engine, path: str, text: str, append: bool = False) -> bool:
    """Put one file's words into ``engine``; whether later files append. Raises ValueError for what is no TOML."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    section = document.get("engine")
    if not isinstance(section, dict):
        return append
    if isinstance(runtime := section.get("runtime"), str):
        engine.runtime = runtime
    listed: Any = section.get("hooks_dir")
    if not isinstance(listed, list):
        return append
    for entry in listed:
        if isinstance(entry, dict) and isinstance(entry.get("append"), bool):
            append = entry["append"]
    names = [entry for entry in listed if isinstance(entry, str)]
    engine.hooks_dirs = [*engine.hooks_dirs, *names] if append else names
    engine.set_by = path
    return append
