"""``netns-graft flows``: what grafted workloads contact, a line for each flow that has ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from netns_graft.cli import client
from netns_graft.errors import UsageError
from netns_graft.lines import printable, say

HELP = """\
usage: netns-graft flows [WORKLOAD] [--follow] [--json]

The last 1,000 flows of a running workload, or of all of them. WORKLOAD is its name in
`netns-graft ps`, its container's name, or the beginning of its container's id.

  -f, --follow   then each flow as it ends; without WORKLOAD, of new workloads too
  --json         flow records, one JSON object each
"""


def run_flows(argv: Sequence[str]) -> int:
    wanted = None
    follow = as_json = False
    for word in argv:
        if word in ("-h", "--help"):
            sys.stdout.write(HELP)
            return 0
        if word in ("-f", "--follow"):
            follow = True
        elif word == "--json":
            as_json = True
        elif word.startswith("-") or wanted is not None:
            raise UsageError(f"flows: unknown argument {word!r}", hint="netns-graft flows --help")
        else:
            wanted = word
    known = [client.find(wanted)] if wanted is not None else client.workloads()
    if follow:
        records = client.follow(known, newcomers=wanted is None)
    else:
        records = (record for workload in known for record in client.past(workload))
    for record in records:
        if "lost" in record:
            say("warning", f"{record['lost']} flows came faster than they could be shown")
        elif "schema" not in record:
            say("warning", str(record.get("error")))
        elif as_json:
            print(json.dumps(record), flush=follow)
        else:
            print(printable(_line(record)), flush=follow)
    return 0


def _line(record: client.Message) -> str:
    """Time, workload, process, what was done with it, where to, and how that ended."""
    process = record["process"]
    who = "unknown"
    if process is not None:
        exe = process["exe"] or (process["argv"] or ["?"])[0]
        who = f"{exe.rpartition('/')[2]}[{process['container_pid'] or process['pid']}]"
    ending = record["outcome"] if record["verdict"] == "allow" else f"denied: {record['rule']}"
    carried = f"{record['bytes_sent']} sent, {record['bytes_received']} received"
    way = f"via {record['upstream']}" if record["upstream"] not in (None, "direct") else ""
    parts = (
        record["started"][11:23], record["workload"], who, "->", _destination(record), way, f"{ending};", carried,
    )  # fmt: skip
    return " ".join(part for part in parts if part)


def _destination(record: client.Message) -> str:
    destination = record["destination"]
    host = destination["host"] or destination["address"]
    if record["protocol"] == "dns":
        return f"{host} (dns)"
    return f"[{host}]:{destination['port']}" if ":" in host else f"{host}:{destination['port']}"
