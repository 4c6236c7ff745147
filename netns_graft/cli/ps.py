"""``netns-graft ps``: every graft there is, a line each."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from netns_graft.cli import client
from netns_graft.cli.terminal import size
from netns_graft.errors import UsageError
from netns_graft.lines import printable

HELP = """\
usage: netns-graft ps [--json]

The workloads that are grafted now, whoever started them: exec, run, build or the hook.
UNKNOWN counts flows for which no process was found.

  --json   one JSON object per workload, with everything its forwarder tells
"""

_HEADINGS = (
    "NAME", "CONTAINER", "MODE", "OPEN", "TOTAL", "DENIED", "UNKNOWN", "SENT", "RECEIVED", "AGE", "UPSTREAM", "POLICY",
)  # fmt: skip
_RIGHT = frozenset(range(3, 10))
_WIDEST = 60


def run_ps(argv: Sequence[str]) -> int:
    as_json = False
    for word in argv:
        if word in ("-h", "--help"):
            sys.stdout.write(HELP)
            return 0
        if word != "--json":
            raise UsageError(f"ps: unknown argument {word!r}", hint="netns-graft ps --help")
        as_json = True
    known = client.workloads()
    if as_json:
        for workload in known:
            print(json.dumps(workload.status))
        return 0
    rows = [_HEADINGS, *(_row(workload.status) for workload in known)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    return 0


def _row(status: client.Message) -> tuple[str, ...]:
    flows, carried = status.get("flows") or {}, status.get("bytes") or {}
    container = status.get("container_name") or str(status.get("container_id") or "")[:12] or "-"
    cells = (
        status.get("name"), container, status.get("mode"),
        *(flows.get(key, 0) for key in ("open", "total", "denied", "unattributed")),
        size(carried.get("sent", 0)), size(carried.get("received", 0)), _age(status.get("started")),
        status.get("upstream") or "direct", status.get("policy"),
    )  # fmt: skip
    return tuple(_short(printable(str(cell))) for cell in cells)


def _short(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 1]}…"


def _age(started: object) -> str:
    if not isinstance(started, (int, float)):
        return "-"
    seconds = max(0, int(time.time() - started))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"

