"""``netns-graft hook``: installs the OCI hook for podman, takes it back, and proves that it is fired."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import netns_graft
from netns_graft.cli.launch import log_file
from netns_graft.engines import installation, trial
from netns_graft.engines.containers_conf import hooks_dirs
from netns_graft.engines.hook_files import WHOEVER_RUNS, Hook
from netns_graft.engines.installation import Place
from netns_graft.errors import GraftError, UsageError
from netns_graft.lines import printable, say
from netns_graft.linux import places
from netns_graft.options import GraftParser

_DESCRIPTION = """\
install    podman (and CRI-O, with --hooks-dir) fires our hook for containers with an annotation
           io.netns-graft.NAME=VALUE, and for no others; says what it changed
uninstall  takes back exactly that
status     shows what is installed, and proves by a trial container that podman fires it
"""
_EPILOG = """\
The container needs --network=none as well. Without --system and --hooks-dir the hook is for the
user's own podman, by a drop-in of containers.conf that keeps the directories podman read before.
Root's podman reads nothing below a home, so for root --system is implied.

Exit status of status: 0 when it is proved that podman fires the hook, 1 when not.
"""
_BROKEN = 1


def run_hook(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status. ``GraftError`` when netns-graft itself fails."""
    parser = GraftParser(
        prog="netns-graft hook",
        usage="netns-graft hook install|uninstall|status [--system] [--hooks-dir DIR]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=["install", "uninstall", "status"], help=argparse.SUPPRESS)
    parser.add_argument("--system", action="store_true", help="for all users (root only)")
    parser.add_argument("--hooks-dir", metavar="DIR", help="there, and nowhere else")
    given = parser.parse_args(argv)
    if given.system and given.hooks_dir is not None:
        raise UsageError("--system and --hooks-dir are two different places", hint="netns-graft hook --help")
    place = _place(given.system, given.hooks_dir, given.action, environ)
    if given.action == "install":
        return _install(place, environ)
    if given.action == "uninstall":
        return _uninstall(place)
    return _status(place, environ)


def _place(system: bool, hooks_dir: str | None, action: str, environ: Mapping[str, str]) -> Place:
    if hooks_dir is not None:
        return installation.place_in(hooks_dir)
    if os.geteuid() == 0:
        return installation.systems_place()
    if system and action != "status":
        raise GraftError("--system is for root", hint="without it the hook is installed for your own podman")
    return installation.systems_place() if system else installation.users_place(environ)


def _install(place: Place, environ: Mapping[str, str]) -> int:
    _refuse_lost_package()
    changes = installation.install(place, _hook(place, environ), environ)
    _show(changes)
    if all(change.what == "unchanged" for change in changes):
        print("nothing to do: it was installed already")
    _warn_if_shadowed(place, environ)
    if place.drop_in is None:
        print(f"podman is told of it by --hooks-dir={place.hooks_dir}")
    print("netns-graft hook status" + _suffix(place) + " proves that podman fires it")
    return 0


def _hook(place: Place, environ: Mapping[str, str]) -> Hook:
    """Root's is for whoever runs it; a user's is for that user."""
    if os.geteuid() == 0:
        _warn_if_private()
        return Hook(file=place.hook_file, python=sys.executable, runtime_dir=WHOEVER_RUNS)
    try:
        runtime = places.runtime_dir(environ)
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
    return Hook(file=place.hook_file, python=sys.executable, runtime_dir=runtime, log=log_file())


def _uninstall(place: Place) -> int:
    changes = installation.uninstall(place)
    if not changes:
        print("nothing to do: it is not installed" + (f" in {place.hooks_dir}" if place.drop_in is None else ""))
    _show(changes)
    return 0


def _status(place: Place, environ: Mapping[str, str]) -> int:
    if not installation.is_installed(place):
        print(f"not installed: {place.note} is not there")
        return _BROKEN
    damage = installation.damage(place)
    for change in damage:
        print(f"BAD  {printable(change.path)}: {change.why}")
    if not damage:
        print(f"ok   the files are as they were installed; definitions in {place.hooks_dir}")
    _warn_if_shadowed(place, environ)
    podman = shutil.which("podman", path=environ.get("PATH"))
    if podman is None:
        print("?    podman is not installed, so nothing is proved")
        return _BROKEN
    return _prove(podman, place, environ, damaged=bool(damage))


def _prove(podman: str, place: Place, environ: Mapping[str, str], *, damaged: bool) -> int:
    options = [f"--hooks-dir={place.hooks_dir}"] if place.drop_in is None else []
    try:
        directory = places.runtime_dir(environ)
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
    verdict = trial.try_podman(podman, options, environ, directory)
    runtime = trial.runtime_of(podman, environ) or "its runtime"
    if verdict.fired is None:
        print(f"BAD  the trial container did not start: {printable(verdict.words)}")
        print(f"     its log may say more: {installation.log_of(place) or f'{directory}/hook.log'}")
        return _BROKEN
    if not verdict.fired:
        print("BAD  podman started a container with our annotation and did not fire the hook: it had no network at all")
        return _BROKEN
    print(f"ok   podman with {runtime} fired it: the trial container was grafted, and is gone again")
    print("     not proved: other runtimes, other users, and `podman build`, which takes hooks only from")
    print("     its own --hooks-dir; netns-graft build gives it one")
    return _BROKEN if damaged else 0


def _show(changes: Sequence[installation.Change]) -> None:
    for change in changes:
        print(f"{change.what:<9} {printable(change.path)}{f' ({change.why})' if change.why else ''}")


def _warn_if_shadowed(place: Place, environ: Mapping[str, str]) -> None:
    if place.drop_in is None:
        return
    now = hooks_dirs(environ, os.geteuid())
    if place.hooks_dir not in now.hooks_dirs:
        if os.path.exists(place.drop_in):
            say("warning", f"{now.set_by} has the last word about hooks_dir: add {place.hooks_dir} there")
        return
    before = hooks_dirs(environ, os.geteuid(), without=place.drop_in)
    lost = [one for one in before.hooks_dirs if one not in now.hooks_dirs] if before.set_by else []
    if lost:
        say("warning", f"{before.set_by} names {', '.join(lost)} since the hook was installed: install it again")


def _refuse_lost_package() -> None:
    """The broker is started by path, with a clean environment: what we were started by may not be found then."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import netns_graft"], cwd="/", capture_output=True, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )  # fmt: skip
    if done.returncode != 0:
        raise GraftError(
            f"{sys.executable} does not find netns_graft by itself, and so the hook would not",
            hint="install the package: pip install netns-graft (or pip install . in its tree)",
        )


def _warn_if_private() -> None:
    """Users' hooks start the broker with root's interpreter and package: both must be theirs to read."""
    for path in (sys.executable, os.path.dirname(os.path.abspath(netns_graft.__file__))):
        while path != "/":
            mode = os.stat(path).st_mode
            if not mode & (0o001 if os.path.isdir(path) else 0o004):
                say("warning", f"{path} is closed to other users: the hook will work for root only")
                return
            path = os.path.dirname(path)


def _suffix(place: Place) -> str:
    return f" --hooks-dir {place.hooks_dir}" if place.drop_in is None else ""
