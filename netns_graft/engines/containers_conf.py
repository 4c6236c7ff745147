"""Where podman looks for hooks: ``hooks_dir`` of its ``containers.conf`` files, read in podman's own order.

Facts, seen on podman 4.3.1 and read in containers/common: a later file's ``hooks_dir`` *replaces* an earlier one's,
unless (since podman 5) the array ends in ``{append = true}``; drop-ins are read in the order of their names, after
the ``containers.conf`` beside them; root reads nothing below its home; ``CONTAINERS_CONF`` takes the place of all;
a directory that does not exist is passed over without a word. ``podman build`` reads none of this.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from netns_graft.errors import ConfigError

# What podman reads when no file says otherwise, and the directory that its manual gives to the administrator.
DEFAULT_DIRECTORIES: tuple[str, ...] = ("/usr/share/containers/oci/hooks.d",)
ADMINISTRATORS = "/etc/containers/oci/hooks.d"


@dataclass(slots=True, frozen=True)
class HookDirectories:
    """The directories in podman's order, and the file that had the last word; None: podman's default."""

    directories: tuple[str, ...]
    said_by: str | None


def hook_directories(
    environ: Mapping[str, str], *, rootless: bool, without: str | None = None, root: str = "/"
) -> HookDirectories:
    """What podman goes by, as if the file ``without`` were not there. ``root``: where the file system begins.

    ``ConfigError`` when a file is no TOML: podman would not start either.
    """
    directories: tuple[str, ...] = DEFAULT_DIRECTORIES
    said_by = None
    append = False
    for path in files(environ, rootless=rootless, root=root):
        given = _hooks_dir(path) if path != without else None
        if given is None:
            continue
        words = tuple(word for word in given if isinstance(word, str))
        for word in given:
            if isinstance(word, dict) and isinstance(word.get("append"), bool):
                append = word["append"]
        directories = directories + words if append else words
        said_by = path
    return HookDirectories(directories, said_by)


def files(environ: Mapping[str, str], *, rootless: bool, root: str = "/") -> list[str]:
    """Every file that podman would read, existing ones only, in its order."""
    if only := environ.get("CONTAINERS_CONF"):
        found = [only]
    else:
        below = root.rstrip("/")
        found = [f"{below}/usr/share/containers/containers.conf", f"{below}/etc/containers/containers.conf"]
        found += drop_ins(f"{below}/etc/containers/containers.conf.d")
        if rootless:
            own = users_directory(environ)
            found += [f"{own}/containers.conf", *drop_ins(f"{own}/containers.conf.d")]
    if last := environ.get("CONTAINERS_CONF_OVERRIDE"):
        found.append(last)
    return [path for path in found if os.path.isfile(path)]


def drop_ins(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in names if name.endswith(".conf")]


def users_directory(environ: Mapping[str, str]) -> str:
    """The directory of a user's own ``containers.conf``."""
    return f"{xdg(environ, 'XDG_CONFIG_HOME', '.config')}/containers"


def xdg(environ: Mapping[str, str], variable: str, below_home: str) -> str:
    """A base directory of the XDG specification. ``ConfigError`` without a home."""
    given = environ.get(variable, "")
    if os.path.isabs(given):
        return given
    home = environ.get("HOME", "")
    if not os.path.isabs(home):
        raise ConfigError(f"neither HOME nor {variable} says where your files are")
    return f"{home}/{below_home}"


def _hooks_dir(path: str) -> list[object] | None:
    try:
        with open(path, "rb") as file:
            engine = tomllib.load(file).get("engine")
    except OSError:
        return None  # not readable for us, nor for podman
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=path) from None
    given = engine.get("hooks_dir") if isinstance(engine, dict) else None
    return given if isinstance(given, list) else None
