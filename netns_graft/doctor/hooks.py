"""Where engines read OCI hooks, and whether netns-graft's would fire: oci-hooks(5).

Ours is known by its file's name in a definition. podman reads each directory's ``*.json``; of several with one name
the later directory's counts. There is a definition for each stage, and the one for createRuntime does the grafting. A
definition that is not right makes podman refuse to start anything, or is never triggered: both are told.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netns_graft.doctor.engines import Program
from netns_graft.doctor.finding import Finding, Status, reason
from netns_graft.engines.containers_conf import DEFAULT_HOOKS_DIR, Engine, config_dir
from netns_graft.linux import host_files

HOOK_FILE = "oci_hook.py"
_ANNOTATION = "io.netns-graft.proxy"  # any of ours would do
_STAGES = {"createRuntime", "prestart"}  # podman folds prestart into createRuntime
_NOT_AT_START = "its stages lack createRuntime"
_FILES = 200  # of a directory


@dataclass(slots=True, frozen=True)
class Definition:
    """A definition that names our hook. ``faults``: why it would not fire, empty when it would."""

    path: str
    faults: tuple[str, ...]


def directories(root: str, engine: Engine) -> Finding:
    """Where podman and buildah look for hooks, by containers.conf."""
    name, title = "hooks-dir", "hook directories"
    if engine.faults:
        return Finding(
            name, title, Status.WARNING, "a containers.conf cannot be used, and podman may refuse to start",
            "correct the file", tuple(engine.faults),
        )  # fmt: skip
    listed = [
        path + ("" if os.path.isdir(os.path.join(root, path.lstrip("/"))) else " (not there)")
        for path in engine.hooks_dirs
    ]
    source = f"by {engine.set_by}" if engine.set_by else "the default"
    if not listed:
        return Finding(name, title, Status.WARNING, f"none ({source}): no hook is ever run", f"mend {engine.set_by}")
    return Finding(name, title, Status.OK, f"{', '.join(listed)} ({source})")


def installed(
    root: str, environ: Mapping[str, str], engine: Engine, programs: Mapping[str, Program]
) -> Finding:
    """Whether a definition names our hook, where it is read, and that it would fire."""
    name, title = "hook", "netns-graft's hook"
    found, unread = _search(root, engine.hooks_dirs)
    working = [one for one in found if not one.faults]
    if working:
        engines = [one.name for one in programs.values() if one.version and one.name in ("podman", "buildah")]
        by = " and ".join(engines) if engines else "no engine that is installed"
        return Finding(name, title, Status.OK, f"{working[-1].path} will be fired by {by}")
    if found:
        # What is only there for the farewell has nothing to say, unless it is all that there is.
        worst = next((one for one in found if _NOT_AT_START not in one.faults), found[-1])
        return Finding(
            name, title, Status.WARNING, f"{worst.path} will not graft anything", "install the hook again",
            worst.faults,
        )  # fmt: skip
    known = [DEFAULT_HOOKS_DIR, "/etc/containers/oci/hooks.d", f"{config_dir(environ)}/containers/oci/hooks.d"]
    aside, _ = _search(root, [path for path in known if path not in engine.hooks_dirs])
    if aside:
        place = os.path.dirname(aside[-1].path)
        return Finding(
            name, title, Status.WARNING, f"{aside[-1].path} is in a directory that podman does not read",
            f'hooks_dir = ["{place}"] under [engine] in {config_dir(environ)}/containers/containers.conf',
        )  # fmt: skip
    if unread:
        return Finding(name, title, Status.UNKNOWN, "a hook directory cannot be read", None, tuple(unread))
    return Finding(name, title, Status.OK, "not installed: only containers need it (netns-graft hook install)")


def _search(root: str, places: list[str]) -> tuple[list[Definition], list[str]]:
    """Definitions that name our hook, and what could not be read."""
    found: dict[str, Definition] = {}
    unread: list[str] = []
    for place in places:
        try:
            names = sorted(os.listdir(os.path.join(root, place.lstrip("/"))))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            unread.append(f"{place}: {reason(error) if isinstance(error, OSError) else error}")
            continue
        for name in [name for name in names if name.endswith(".json")][:_FILES]:
            path = f"{place}/{name}"
            found.pop(name, None)
            try:
                text = host_files.read(root, path)
            except OSError as error:
                unread.append(f"{path}: {reason(error)}")
                continue
            if HOOK_FILE in text:
                found[name] = Definition(path, tuple(faults(root, text)))
    return list(found.values()), unread


def faults(root: str, text: str) -> list[str]:
    """Why podman would not fire this definition, or why it would fire in vain. Any text gives an answer."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [f"it is no JSON: {error}"]
    if not isinstance(document, dict):
        return ["it is no JSON object"]
    found = []
    if document.get("version") != "1.0.0":
        found.append('its version is not "1.0.0"')
    stages = document.get("stages")
    if not isinstance(stages, list) or not any(stage in _STAGES for stage in stages if isinstance(stage, str)):
        found.append(_NOT_AT_START)
    return found + _hook_faults(root, document.get("hook")) + _when_faults(document.get("when"))


def _hook_faults(root: str, hook: Any) -> list[str]:
    if not isinstance(hook, dict) or not isinstance(path := hook.get("path"), str):
        return ["it names no program to run"]
    found = []
    if not path.startswith("/"):
        found.append(f"its path is not absolute: {path}")
    elif (why := _unusable(root, path, os.X_OK)) is not None:
        found.append(f"its program cannot be run: {path}: {why}")
    arguments = hook.get("args")
    listed = [one for one in arguments if isinstance(one, str)] if isinstance(arguments, list) else []
    scripts = [one for one in (path, *listed) if one.endswith("/" + HOOK_FILE) or one == HOOK_FILE]
    if not scripts:
        found.append(f"it does not run {HOOK_FILE}")
    for script in scripts[:1]:
        if (why := _unusable(root, script, os.R_OK)) is not None:
            found.append(f"the hook cannot be read: {script}: {why}")
    return found


def _unusable(root: str, path: str, wanted: int) -> str | None:
    place = os.path.join(root, path.lstrip("/"))
    try:
        if os.access(place, wanted) and os.path.isfile(place):
            return None
        os.stat(place)
    except OSError as error:
        return reason(error)
    except ValueError as error:  # a NUL in the name
        return str(error)
    return "not permitted"


def _when_faults(when: Any) -> list[str]:
    """It must be triggered by one of our annotations, or always."""
    if not isinstance(when, dict):
        return ["it does not say when"]
    if when.get("always") is True:
        return []
    annotations = when.get("annotations")
    if not isinstance(annotations, dict):
        return ["no annotation of netns-graft triggers it"]
    for key in annotations:
        try:
            if re.search(key, _ANNOTATION):
                return []
        except (re.error, RecursionError, OverflowError):
            return [f"its annotation is no regular expression: {key}"]
    return ["no annotation of netns-graft triggers it"]
