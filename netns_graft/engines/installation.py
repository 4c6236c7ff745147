"""``hook install`` and ``hook uninstall``: files that podman reads, written so that they can be taken back exactly.

What was written is noted, with a checksum for each file and every directory that had to be made. The note is written
first, so that an install that is cut short can be undone; the ``containers.conf`` drop-in is written last, so that
podman never reads of a hook that is not there yet. A file that is in our way and not ours, or that somebody has
changed since, is never touched.

The hook file is a copy: the package's own goes away with an upgrade of Python or the removal of a virtual
environment, and then every container with an annotation of ours would fail to start for want of a file that nobody
remembers. The copy still says what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netns_graft.engines.containers_conf import (
    ADMINISTRATORS_HOOKS_DIR,
    DEFAULT_HOOKS_DIR,
    config_dir,
    hooks_dirs,
)
from netns_graft.engines.hook_files import STAGES, Hook, definition_name, packaged_hook
from netns_graft.errors import GraftError

_DROP_IN = "99-netns-graft.conf"  # after others, for the last one's hooks_dir counts
_OURS = "netns-graft"  # the directory of what podman does not read
_HOOK = "oci_hook.py"
_NOTE = "installed.json"


@dataclass(slots=True, frozen=True)
class Place:
    """Where a hook is installed. ``drop_in`` None: podman is told of ``hooks_dir`` by whoever runs it."""

    hooks_dir: str
    hook_file: str
    note: str
    drop_in: str | None = None


class Change(NamedTuple):
    """What became of a path: "wrote", "made", "unchanged", "removed", "left". ``why`` for "left"."""

    what: str
    path: str
    why: str = ""


def users_place(environ: Mapping[str, str]) -> Place:
    home, data = environ.get("HOME", ""), environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(home):
        raise GraftError("HOME does not say where your files are")
    ours = f"{data if os.path.isabs(data) else f'{home}/.local/share'}/{_OURS}"
    return Place(
        hooks_dir=f"{ours}/hooks.d",
        hook_file=f"{ours}/{_HOOK}",
        note=f"{ours}/{_NOTE}",
        drop_in=f"{config_dir(environ)}/containers/containers.conf.d/{_DROP_IN}",
    )


def systems_place() -> Place:
    """For all users."""
    ours = f"/usr/local/lib/{_OURS}"
    return Place(
        hooks_dir=ADMINISTRATORS_HOOKS_DIR,
        hook_file=f"{ours}/{_HOOK}",
        note=f"{ours}/{_NOTE}",
        drop_in=f"/etc/containers/containers.conf.d/{_DROP_IN}",
    )


def place_in(directory: str) -> Place:
    """Everything below one directory, for ``--hooks-dir`` of podman or for CRI-O; engines look into no directory
    below it.
    """
    directory = os.path.abspath(directory)
    ours = f"{directory}/{_OURS}"
    return Place(hooks_dir=directory, hook_file=f"{ours}/{_HOOK}", note=f"{ours}/{_NOTE}")


def is_installed(place: Place) -> bool:
    return os.path.exists(place.note)


def log_of(place: Place) -> str | None:
    """Where the installed hook writes what goes wrong; None: beside the sockets of whoever runs it."""
    try:
        with open(f"{place.hooks_dir}/{definition_name(STAGES[0])}", encoding="utf-8") as file:
            words = json.load(file)["hook"]["args"]
        return str(words[words.index("--log") + 1])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def install(place: Place, hook: Hook, environ: Mapping[str, str]) -> list[Change]:
    """Write what is not there yet. ``hook.file`` is taken to be ``place.hook_file``. ``GraftError``; then nothing
    was changed, unless the disk is full.
    """
    wanted = _wanted(place, hook, environ)
    note = _Note.read(place.note)
    stale = [path for path in note.files if path not in wanted]
    for path, content in wanted.items():
        _refuse_foreign(path, content, note)
    try:
        changes = [Change("made", made) for made in _make_parents([place.note, *wanted], note)]
        note.files.update({path: _sum(content) for path, content in wanted.items()})
        note.write(place.note)
        for path, content in wanted.items():
            if _content(path) == content:
                changes.append(Change("unchanged", path))
            else:
                _write(path, content, 0o755 if path == place.hook_file else 0o644)
                changes.append(Change("wrote", path))
        for path in stale:  # of an older version
            changes.append(_remove(path, note.files.pop(path)))
        if stale:
            note.write(place.note)
    except OSError as error:
        raise GraftError(
            f"cannot write {error.filename}: {error.strerror}",
            hint="netns-graft hook uninstall takes back what was written",
        ) from None
    return changes


def uninstall(place: Place) -> list[Change]:
    """Take back what the note says, the drop-in first. Empty when nothing was installed."""
    note = _Note.read(place.note)
    if not note.files:
        return []
    try:
        changes = [_remove(path, checksum) for path, checksum in reversed(note.files.items())]
        os.unlink(place.note)
        for directory in reversed(note.directories):
            try:
                os.rmdir(directory)
                changes.append(Change("removed", directory))
            except FileNotFoundError:
                pass
            except OSError:
                changes.append(Change("left", directory, "somebody else has files in it"))
    except OSError as error:
        raise GraftError(f"cannot remove {error.filename}: {error.strerror}") from None
    return changes


def damage(place: Place) -> list[Change]:
    """Files that are not as they were installed: "gone" or "changed", with the reason in ``why``."""
    found = []
    for path, checksum in _Note.read(place.note).files.items():
        content = _content(path)
        if content is None:
            found.append(Change("gone", path, "it is gone; install the hook again"))
        elif _sum(content) != checksum:
            found.append(Change("changed", path, "somebody has changed it"))
    return found


def _wanted(place: Place, hook: Hook, environ: Mapping[str, str]) -> dict[str, bytes]:
    """Path and content of each file, in the order in which they are to appear."""
    with open(packaged_hook(), "rb") as file:
        wanted = {place.hook_file: file.read()}
    for name, text in hook.files(always=False).items():
        wanted[f"{place.hooks_dir}/{name}"] = text.encode()
    if place.drop_in is not None:
        wanted[place.drop_in] = _drop_in(place, environ).encode()
    return wanted


def _drop_in(place: Place, environ: Mapping[str, str]) -> str:
    """The directories that podman reads now, and ours: a drop-in that names only ours would switch theirs off."""
    now = hooks_dirs(environ, os.geteuid(), without=place.drop_in)
    directories = now.hooks_dirs if now.set_by is not None else [DEFAULT_HOOKS_DIR, ADMINISTRATORS_HOOKS_DIR]
    if place.hooks_dir not in directories:
        directories = [*directories, place.hooks_dir]
    rows = "".join(f"  {json.dumps(directory)},\n" for directory in directories)
    return (
        "# Written by `netns-graft hook install`; `netns-graft hook uninstall` removes it.\n"
        "# hooks_dir replaces what other files say, so it repeats what podman read before.\n"
        f"[engine]\nhooks_dir = [\n{rows}]\n"
    )


def _refuse_foreign(path: str, content: bytes, note: _Note) -> None:
    found = _content(path)
    if found is None or found == content:
        return
    if path not in note.files:
        raise GraftError(f"{path} exists and is not ours", hint="move it away, then install again")
    if _sum(found) != note.files[path]:
        raise GraftError(f"{path} has been changed since it was installed", hint="move it away, then install again")


def _make_parents(paths: list[str], note: _Note) -> list[str]:
    """Make the directories that are missing, outermost first, and note them. All or none."""
    made: list[str] = []
    try:
        for path in paths:
            missing = []
            directory = os.path.dirname(path)
            while not os.path.isdir(directory):
                missing.append(directory)
                directory = os.path.dirname(directory)
            for directory in reversed(missing):
                os.mkdir(directory, 0o755)
                made.append(directory)
    except OSError:
        for directory in reversed(made):
            os.rmdir(directory)
        raise
    note.directories += made
    return made


def _remove(path: str, checksum: str) -> Change:
    content = _content(path)
    if content is None:
        return Change("left", path, "it is gone already")
    if _sum(content) != checksum:
        return Change("left", path, "somebody has changed it")
    os.unlink(path)
    return Change("removed", path)


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise GraftError(f"cannot read {path}: {error.strerror}") from None


def _write(path: str, content: bytes, mode: int) -> None:
    """All or nothing: a reader sees the old file or the whole new one."""
    fd, temporary = tempfile.mkstemp(prefix=".netns-graft-", dir=os.path.dirname(path))
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(slots=True)
class _Note:
    """What was installed: checksums of files in the order of writing, directories in the order of making."""

    files: dict[str, str]
    directories: list[str]

    @classmethod
    def read(cls, path: str) -> _Note:
        content = _content(path)
        if content is None:
            return cls({}, [])
        try:
            said = json.loads(content)
            files, directories = said["files"], said["directories"]
            return cls({str(name): str(files[name]) for name in files}, [str(name) for name in directories])
        except (ValueError, KeyError, TypeError):
            raise GraftError(f"{path} is damaged", hint="remove it and what netns-graft has written") from None

    def write(self, path: str) -> None:
        _write(path, json.dumps({"files": self.files, "directories": self.directories}, indent=1).encode(), 0o644)
