"""``netns-graft build``: ``podman build`` with every RUN in a graft of its own, and the flows told by RUN."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from netns_graft.broker import denial, workloads
from netns_graft.cli.engine_options import parse_build
from netns_graft.cli.launch import Launch, find_engine, launch, status_with_denials, to_the_end
from netns_graft.engines import resolving
from netns_graft.engines.podman_options import has
from netns_graft.flow import Flow
from netns_graft.journal import Tally
from netns_graft.lines import say

_LONGEST = 100  # characters of a RUN in a line
_MOST_DENIALS = 20  # lines of them for each step


@dataclass(slots=True)
class Step:
    """A RUN that was run. ``name`` is its workload's."""

    name: str
    command: str
    tally: Tally = field(default_factory=Tally)

    @property
    def title(self) -> str:
        text = " ".join(self.command.split())
        return f"RUN {text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"


def run_build(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status. ``GraftError`` when netns-graft itself fails."""
    line = parse_build(argv, environ)
    podman = find_engine("podman", environ)
    fatal = line.options.fail_on_deny
    with launch("build", line.options, environ, records=True) as this:
        this.settings += resolving.settings(line.resolving)
        if fatal:
            this.settings.append(("end-on-deny", "true"))
        # podman build reads no hooks_dir of containers.conf, and --hooks-dir only after the verb.
        command = [podman, "build", f"--hooks-dir={this.hooks_dir(group=this.name)}"]
        if not has(line.read, "network"):
            command.append("--network=none")
        if fatal and not has(line.read, "layers"):
            # A step that was denied something would come from the cache next time, and pass.
            command.append("--layers=false")
        if line.resolving is not None:
            command.append(resolving.volume(line.resolving.resolv_conf(resolving.host_text()), this.directory))
        steps = Steps(f"{this.runtime}/groups/{this.name}")
        fate = Fate(f"{this.runtime}/workloads", steps) if fatal else None
        is_enough = fate.is_enough if fate is not None else None
        try:
            status = to_the_end(podman, [*command, *line.passed_on], environ, this, steps.add, is_enough)
            if fate is not None and status:
                fate.look()
            _wait_for_the_last(this, steps)
        finally:
            steps.forget()
    found = list(steps.read().values())
    if this.wants_summary:
        from netns_graft.cli.summary import print_steps

        print_steps([(step.title, step.tally) for step in found], sys.stderr)
    ended = status != 0 and fate is not None and fate.is_sealed
    if status and not ended:
        this.tell_refusal()
    _tell_denials(found)
    final = status_with_denials(line.options, 0 if ended else status, sum(step.tally.denied for step in found))
    if ended:
        say("error", "the build was ended with its first denied flow: there is no image")
    elif final != status:
        say("error", "the build was denied something; its image, if it has a name, is there all the same")
    return final


class Fate:
    """The first denied flow ends the build: its RUN is killed by its forwarder. The others are our part."""

    def __init__(self, directory: str, steps: Steps) -> None:
        self._directory = directory
        self._steps = steps
        self.is_sealed = False
        self._late = False

    def is_enough(self) -> bool:
        """Must podman be interrupted? When nothing was left of the RUN that could fail."""
        self.look()
        return self._late

    def look(self) -> None:
        if self.is_sealed or (said := denial.noted(self._steps.path)) is None:
            return
        self.is_sealed, self._late = True, bool(said.get("late"))
        for name in self._steps.read():  # podman waits for the RUNs of other stages that it has begun
            with contextlib.suppress(OSError):
                workloads.ask(self._directory, name, {"do": "end"})


class Steps:
    """The RUNs of one build, each with its flows. The broker lists them in ``path``, a line of JSON each."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._steps: dict[str, Step] = {}

    def add(self, flow: Flow) -> None:
        """A flow of whatever workload; those of others, who may share the file, are passed over."""
        step = self._steps.get(flow.workload) or self.read().get(flow.workload)
        if step is not None:
            step.tally.add(flow)

    def read(self) -> Mapping[str, Step]:
        """Those there are by now, by the names of their workloads, in the order of their beginning."""
        try:
            with open(self.path, encoding="utf-8") as file:
                for line in file:
                    said = json.loads(line)
                    self._steps.setdefault(said["name"], Step(said["name"], run_of(said["args"])))
        except FileNotFoundError:
            pass  # no RUN yet
        return self._steps

    def forget(self) -> None:
        self.read()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        denial.forget(self.path)


def run_of(args: Sequence[str]) -> str:
    """The instruction as it was written: buildah runs its text by ``/bin/sh -c``, an array as it is."""
    if len(args) == 3 and args[0].endswith("sh") and args[1] == "-c":
        return args[2]
    return json.dumps(list(args))


def _wait_for_the_last(this: Launch, steps: Steps) -> None:
    """Until the forwarder of each RUN has written its records; then read the rest of them."""
    for name in steps.read():
        with contextlib.suppress(OSError):  # it has long ended
            workloads.ask_and_wait(f"{this.runtime}/workloads", name, {"do": "leave"})
    if this.record is not None:
        this.record.read(steps.add)


def _tell_denials(steps: Sequence[Step]) -> None:
    """A line for each, whether or not there is a summary: a build that was denied something may just go on."""
    for step in steps:
        denied = [group for group in step.tally.groups if group.verdict != "allow"]
        for group in denied[:_MOST_DENIALS]:
            times = f", {group.count} times" if group.count > 1 else ""
            what = f"{group.destination} (dns)" if group.protocol == "dns" else group.destination
            say("denied", f"{what} by {group.rule}{times}, in {step.title}")
        if len(denied) > _MOST_DENIALS:
            say("denied", f"and {len(denied) - _MOST_DENIALS} more, in {step.title}")
