"""``netns-graft run``: ``podman run`` with a graft for its network, or an OCI bundle without podman."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

from netns_graft.broker import workloads
from netns_graft.broker.request import short_id
from netns_graft.cli.engine_options import EngineLine, parse_run
from netns_graft.cli.launch import Launch, ending, find_engine, launch, to_the_end
from netns_graft.engines import resolving
from netns_graft.engines.bundle import RUNTIME, write_grafted
from netns_graft.engines.containers_conf import hooks_dirs
from netns_graft.engines.hook_files import ANNOTATIONS, STAGES, definition_name
from netns_graft.engines.podman_options import Option, has, last, read_options
from netns_graft.engines.resolving import Resolving
from netns_graft.errors import GraftError, UsageError
from netns_graft.journal import Tally
from netns_graft.lines import say

_LEAVING = 2.0  # seconds for a container that has just ended to be out of its network


def run_run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status. ``GraftError`` when netns-graft itself fails."""
    line = parse_run(argv, environ)
    return _run_bundle(line, environ) if line.bundle is not None else _run_podman(line, environ)


def _run_podman(line: EngineLine, environ: Mapping[str, str]) -> int:
    podman = find_engine("podman", environ)
    detach = last(line.read, "detach")
    stays = detach is None or not detach.is_on
    if not stays and line.options.fail_on_deny:
        raise UsageError("--fail-on-deny: nobody waits for the end of a detached container", hint="leave out -d")
    tally = Tally()
    with launch("run", line.options, environ, stays=stays) as this:
        given = last(line.read, "cidfile")
        cidfile = given.value if given is not None else f"{this.directory}/container-id"
        this.settings += resolving.settings(line.resolving)
        annotations = _annotations(this)
        _warn_of_restart(line.read, annotations, environ)
        command = [
            podman, "run",
            *([] if has(line.read, "network") else ["--network=none"]),
            *_hooks_dirs(this, line.read, environ),
            *([] if given is not None or this.record is None else [f"--cidfile={cidfile}"]),
            *annotations,
            *_resolv_conf(line.resolving),
            *line.passed_on,
        ]  # fmt: skip
        status = to_the_end(podman, command, environ, this, tally.add)
        _settle(this, _container_id(cidfile), tally)
    return ending(this, status, tally)


def _resolv_conf(asked: Resolving | None) -> Iterator[str]:
    if asked is None:
        return
    try:
        yield resolving.lasting_volume(asked.resolv_conf(resolving.host_text()))
    except OSError as error:
        raise GraftError(f"cannot write the container's resolv.conf: {error.filename}: {error.strerror}") from None


def _hooks_dirs(this: Launch, read: Sequence[Option], environ: Mapping[str, str]) -> Iterator[str]:
    """``--hooks-dir`` takes the place of containers.conf's; so we repeat those, unless the user gives his own. Ours is
    the last of them: its files go before installed ones of the same names.
    """
    if not has(read, "hooks-dir"):
        for directory in hooks_dirs(environ, os.geteuid()).hooks_dirs:
            yield f"--hooks-dir={directory}"
    yield f"--hooks-dir={this.hooks_dir()}"


def _annotations(this: Launch) -> list[str]:
    """The settings, for podman's eyes and for a restart. None at all where one cannot be written (podman splits at
    commas) or would not be true later: then a restarted container has no network.
    """
    values: dict[str, list[str]] = {}
    for name, value in this.settings:
        if value.startswith(this.directory) and name == "flows":
            continue
        if any(char in value for char in ',"\n\r') or value.startswith(this.directory):
            return []
        values.setdefault(name, []).append(value)
    return [f"--annotation={ANNOTATIONS}{name}={' '.join(texts)}" for name, texts in values.items()]


def _warn_of_restart(read: Sequence[Option], annotations: list[str], environ: Mapping[str, str]) -> None:
    """podman forgets --hooks-dir when it restarts a container (until 5.6), and then an installed hook must do."""
    policy = last(read, "restart")
    if policy is None or policy.value in (None, "", "no"):
        return
    directories = hooks_dirs(environ, os.geteuid()).hooks_dirs
    if not annotations:
        say("warning", "these options fit in no annotation: when podman restarts the container, it has no network")
    elif not any(os.path.exists(f"{directory}/{definition_name(STAGES[0])}") for directory in directories):
        say("warning", "when podman restarts the container, it has no network: netns-graft hook install cures that")


def _run_bundle(line: EngineLine, environ: Mapping[str, str]) -> int:
    runtime = find_engine(line.runtime or "", environ)
    read, rest = read_options(line.passed_on, RUNTIME)
    if len(rest) > 1 or has(read, "bundle"):
        raise UsageError(
            f"{rest[1] if rest[1:] else '--bundle'!r}: after the bundle come options of {line.runtime} and one id",
            hint="what runs is said by the bundle's config.json",
        )
    words = line.passed_on[: len(line.passed_on) - len(rest)]
    tally = Tally()
    with launch("run", line.options, environ, stays=not has(read, "detach")) as this:
        container_id = rest[0] if rest else this.name
        bundle = f"{this.directory}/bundle"
        os.mkdir(bundle, 0o700)
        hidden = line.runtime == "crun" and os.geteuid() != 0
        write_grafted(os.path.abspath(line.bundle or ""), bundle, this.hook(), hidden=hidden)
        command = [runtime, "run", f"--bundle={bundle}", *words, container_id]
        status = to_the_end(runtime, command, environ, this, tally.add)
        _settle(this, container_id, tally)
    return ending(this, status, tally)


def _settle(this: Launch, container_id: str | None, tally: Tally) -> None:
    """Wait for the container's last records. A container that goes on (podman's detach keys) is left alone."""
    if this.record is None:
        return
    deadline = time.monotonic() + _LEAVING
    while container_id and not _has_left(this, container_id):
        if time.monotonic() > deadline:
            say("note", "the container runs on; this is the record so far. netns-graft flows shows the rest")
            break
        time.sleep(0.05)
    # The file may be shared with other grafts.
    this.record.read(lambda flow: tally.add(flow) if flow.container_id == container_id else None)


def _has_left(this: Launch, container_id: str) -> bool:
    """Asks the forwarder to look whether anybody is still there; when not, it is gone when this returns."""
    try:
        answer = workloads.ask_and_wait(f"{this.runtime}/workloads", short_id(container_id), {"do": "leave"})
    except OSError:
        return True
    return bool(answer.get("finished"))


def _container_id(cidfile: str | None) -> str | None:
    try:
        with open(cidfile or "", encoding="ascii") as file:
            return file.read().strip() or None
    except (OSError, ValueError):
        return None
