"""The hook's definition files, as podman, CRI-O and their kin read them (schema 1.0.0, oci-hooks(5)).

One for each stage: the hook is told its stage as an argument, for the state on its stdin does not say it. The files
have the same names wherever they are, so that those of one run take the place of installed ones (of two files with
one name the later directory's counts) and no container is grafted twice.

The farewell (poststop) is a second start of the hook, and whoever waits for the container waits for it: 20 ms. A
forwarder sees its container's end by itself. So the farewell is said where something hangs on it alone: that the
records are complete in the user's file when the engine returns, and that a build goes on only with what its RUN did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import netns_graft
from netns_graft.errors import GraftError

STAGES = ("createRuntime", "poststop")
INSIDE = "createContainer"  # besides, in a bundle alone
ANNOTATIONS = "io.netns-graft."
_PATTERN = r"^io\.netns-graft\..*$"  # keys are unanchored regular expressions
_FILE_PATTERN = r"^io\.netns-graft\.flows$"
INTERPRETER = "/usr/bin/python3"
WHOEVER_RUNS = "user"  # as runtime_dir: the hook works out its user's own
_TIME_LIMIT = 30  # seconds; the hook keeps a shorter one itself, and says why


@dataclass(slots=True, frozen=True)
class Hook:
    """How the hook is called. ``file``: oci_hook.py; ``python``: an interpreter that has netns_graft, for the broker.

    ``settings`` are graft options by name, ``annotations`` whether those of the container count as well. ``awaited``:
    whoever starts the engine waits for the last records himself. ``launch``: what it is called in the log.
    """

    file: str
    python: str
    runtime_dir: str
    log: str | None = None
    group: str | None = None
    annotations: bool = True
    awaited: bool = False
    launch: str | None = None
    settings: Sequence[tuple[str, str]] = field(default=(), repr=False)

    def arguments(self, stage: str) -> list[str]:
        words = ["-IS", self.file, "--stage", stage, "--python", self.python, "--runtime-dir", self.runtime_dir]
        for name, value in (("--log", self.log), ("--group", self.group), ("--launch", self.launch)):
            if value is not None:
                words += [name, value]
        if not self.annotations:
            words += ["--annotations", "off"]
        for name, value in self.settings:
            words += ["--set", f"{name}={value}"]
        return words

    def call(self, stage: str) -> dict[str, Any]:
        """As an OCI bundle has it."""
        return {"path": INTERPRETER, "args": ["python3", *self.arguments(stage)], "timeout": _TIME_LIMIT}

    def stages(self) -> tuple[str, ...]:
        """In which stages it is to be called for every container: see above."""
        waits = self.group is not None or (not self.awaited and any(name == "flows" for name, _ in self.settings))
        return STAGES if waits else STAGES[:1]

    def files(self, *, always: bool) -> dict[str, str]:
        """Name and content of each definition file: ``always``, or only for containers with an annotation of ours."""
        found = {}
        for stage in STAGES:
            when: dict[str, Any] = {"always": True} if always else {"annotations": {_PATTERN: ".*"}}
            if stage not in self.stages():
                if not self.annotations:
                    continue
                when = {"annotations": {_FILE_PATTERN: ".*"}}
            definition = {"version": "1.0.0", "hook": self.call(stage), "when": when, "stages": [stage]}
            found[definition_name(stage)] = json.dumps(definition, indent=2) + "\n"
        return found

    def write(self, directory: str, *, always: bool) -> None:
        """The definition files, for us only to read: settings may be nobody else's business."""
        for name, text in self.files(always=always).items():
            fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)


def definition_name(stage: str) -> str:
    return f"netns-graft-{stage}.json"


def packaged_hook() -> str:
    """oci_hook.py as it came with this package: in the wheel, or in the tree. ``GraftError`` when it is lost."""
    package = os.path.dirname(os.path.abspath(netns_graft.__file__))
    for place in (f"{package}/hooks/oci_hook.py", f"{os.path.dirname(package)}/hooks/oci_hook.py"):
        if os.path.isfile(place):
            return place
    raise GraftError("hooks/oci_hook.py is missing from the installation", hint="install netns-graft again")
