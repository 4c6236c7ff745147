"""``netns-graft doctor``: a line for each finding, its cure below it; or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

from netns_graft.doctor import Finding, Report, examine
from netns_graft.errors import UsageError
from netns_graft.lines import printable

HELP = """\
usage: netns-graft doctor [--json]

Looks at what on this host helps or hinders grafting, and names the cure. Changes nothing.

  ok        as it should be
  warning   grafting works; something around it may not
  problem   grafting cannot work until it is cured
  unknown   could not be looked at, with the reason

  --json    one JSON object, for scripts: docs/doctor.md

Exit status: 0 when grafting can work, 1 when it cannot. More can be seen as root.
"""


def run_doctor(argv: Sequence[str]) -> int:
    as_json = False
    for word in argv:
        if word in ("-h", "--help"):
            print(HELP, end="")
            return 0
        if word != "--json":
            raise UsageError(f"doctor takes no {word!r}", hint="netns-graft doctor --help")
        as_json = True
    report = examine(os.environ)
    if as_json:
        print(json.dumps(report.record(), indent=2))
    else:
        for line in lines(report):
            print(line)
    return 0 if report.can_graft else 1


def lines(report: Report) -> Iterator[str]:
    """What is printed, fit for a terminal."""
    width = max(len(finding.title) for finding in report.findings)
    for finding in report.findings:
        yield from _finding(finding, width)


def _finding(finding: Finding, width: int) -> Iterator[str]:
    yield f"{finding.status.value:<8} {finding.title:<{width}}  {printable(finding.detail)}"
    below = " " * 9
    for line in finding.evidence:
        yield f"{below}| {printable(line)}"
    if finding.cure:
        yield f"{below}cure: {printable(finding.cure)}"
