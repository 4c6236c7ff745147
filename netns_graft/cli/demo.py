"""``netns-graft demo``: the main job on this machine alone, explained.

On a stage (``graft/stage.py``) an ordinary program visits five places, first as it is, then grafted by the very
command line that is shown. What came of it is compared with what must come of it: a demo that shows a place reached
which should be closed, or a flow without its process, says so and ends with status 1.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from netns_graft.cli import demo_program
from netns_graft.cli.terminal import size
from netns_graft.errors import GraftError
from netns_graft.graft import stage
from netns_graft.graft.stage_sites import (
    ALLOWED,
    ECHO_PORT,
    FORBIDDEN,
    HOST_NAME,
    METADATA,
    PAGES,
    PRIVATE_PORT,
    WEB_PORT,
    WEB_V4,
)
from netns_graft.lines import printable

Record = dict[str, Any]

_WIDTH = 80
_RULE = f"{ALLOWED}:{WEB_PORT}"
_OPTIONS = ["--default", "deny", "--allow", _RULE]
_NOT_AS_IT_SHOULD = 1


@dataclass(slots=True, frozen=True)
class Place:
    """A place that the program visits. ``rule``: what must decide on it in the graft; None where no flow can be."""

    url: str
    host: str
    port: int
    answer: str  # what is said to whoever gets there
    verdict: str
    rule: str | None
    why: str


PLACES = (
    Place(
        f"http://{ALLOWED}/",
        ALLOWED,
        WEB_PORT,
        f"200 {PAGES[ALLOWED]}",
        "allow",
        f"--allow {_RULE}",
        "The program connected to {address}, which stands for the name and exists in this graft only: so the rule"
        " saw the name. The forwarder looked it up on the host and dialled {resolved}.",
    ),
    Place(
        f"http://{FORBIDDEN}/",
        FORBIDDEN,
        WEB_PORT,
        f"200 {PAGES[FORBIDDEN]}",
        "deny",
        "default",
        "No rule names it, and the default is deny. connect() failed at once{tries}. Nothing left the host, not even"
        " a DNS question.",
    ),
    Place(
        f"http://{METADATA}/",
        METADATA,
        WEB_PORT,
        f"200 {PAGES[METADATA]}",
        "deny",
        "protected:link-local",
        'Link-local addresses are closed even with "--default allow", until a rule names them.',
    ),
    Place(
        f"http://{HOST_NAME}:{PRIVATE_PORT}/",
        HOST_NAME,
        PRIVATE_PORT,
        f"200 {PAGES[HOST_NAME]}",
        "deny",
        "protected:host",
        "The host's own services are closed as well, until a rule names them, such as"
        f' "--allow {HOST_NAME}:{PRIVATE_PORT}".',
    ),
    Place(f"udp://{WEB_V4}:{ECHO_PORT}", WEB_V4, ECHO_PORT, "echo Anybody there?", "deny", None, ""),
)


@dataclass(slots=True, frozen=True)
class Visits:
    """What the program said: its PID, and what came of each URL."""

    pid: int | None
    outcomes: dict[str, str]

    @classmethod
    def parse(cls, output: bytes) -> Visits:
        first, *lines = output.decode(errors="replace").splitlines() or [""]
        pid = first.removeprefix("PID ")
        pairs = (line.partition("\t") for line in lines)
        return cls(int(pid) if pid.isdecimal() else None, {url: outcome for url, _tab, outcome in pairs})


def run_demo() -> int:
    """Show it. Raises GraftError: when there can be no stage or graft, and with status 1 when something that the
    demo claims turned out not to be so."""
    log_fd, flows_fd = os.memfd_create("requests"), os.memfd_create("flows")
    try:
        with stage.raised(log_fd) as scene:
            status = _show(scene, log_fd, flows_fd)
        if status == 0:
            _say(_FAREWELL)
        return status
    finally:
        os.close(log_fd)
        os.close(flows_fd)


def _show(scene: stage.Stage, log_fd: int, flows_fd: int) -> int:
    program = [sys.executable, "-IS", demo_program.__file__, *(place.url for place in PLACES)]
    _say(_INTRODUCTION)
    plain = scene.perform(lambda: stage.run_program(program))
    if plain.status != 0:
        raise GraftError(f"the demo's program failed: {_last_line(plain.stderr)}", status=_NOT_AS_IT_SHOULD)
    _say_visits("$ python3 demo_program.py URL...", before := Visits.parse(plain.stdout))

    served = len(stage.read_all(log_fd))
    _say(_THE_GRAFT)
    grafted = scene.perform(_grafting(program, flows_fd))
    if grafted.status != 0:
        sys.stdout.flush()
        sys.stderr.write(grafted.stderr.decode(errors="replace"))
        return grafted.status
    command = f"$ netns-graft exec {' '.join(_OPTIONS)} -- \\\n      python3 demo_program.py URL..."
    _say_visits(command, after := Visits.parse(grafted.stdout))

    flows = _json_lines(stage.read_all(flows_fd))
    requests = _json_lines(stage.read_all(log_fd)[served:])
    _say(_THE_RECORD)
    _say_flows([flow for flow in flows if flow["protocol"] == "tcp"])
    _say_the_rest(flows, requests)
    wrong = faults(before, after, flows, requests)
    if wrong:
        raise GraftError(f"the demo did not go as it should: {'; '.join(wrong)}", status=_NOT_AS_IT_SHOULD)
    return 0


def _grafting(program: Sequence[str], flows_fd: int) -> Callable[[], int]:
    """The act that is ``netns-graft exec`` itself."""

    def act() -> int:
        from netns_graft.cli.main import main

        return main(["exec", *_OPTIONS, "--no-summary", "--flows", f"/proc/self/fd/{flows_fd}", "--", *program])

    return act


def faults(before: Visits, after: Visits, flows: Sequence[Record], requests: Sequence[Record]) -> list[str]:
    """What did not go as the demo claims; each in words, none when all is well.

    ``before`` and ``after`` are the visits without and with a graft, ``flows`` the records of the graft, and
    ``requests`` what the web servers were asked meanwhile.
    """
    wrong = []
    for place in PLACES:
        plain, grafted = before.outcomes.get(place.url, "nothing"), after.outcomes.get(place.url, "nothing")
        if plain != place.answer:
            wrong.append(f"without a graft, {place.url} gave {plain!r}")
        if place.verdict == "allow" and grafted != place.answer:
            wrong.append(f"{place.url} is allowed, but gave {grafted!r}")
        if place.verdict != "allow" and (grafted == place.answer or grafted.startswith("200 ")):
            wrong.append(f"{place.url} was reached, though nothing allows it")
        if place.rule is not None and not any(_is_of(flow, place, after.pid) for flow in flows):
            wrong.append(f"no flow to {place.host}:{place.port} says {place.verdict}, {place.rule}, PID {after.pid}")
    strangers = {request["host"] for request in requests} - {ALLOWED}
    if strangers:
        wrong.append(f"servers were reached that nothing allows: {', '.join(sorted(strangers))}")
    return wrong


def _is_of(flow: Record, place: Place, pid: int | None) -> bool:
    to, process = flow["destination"], flow["process"]
    return (
        flow["protocol"] == "tcp"
        and (to["host"] or to["address"], to["port"]) == (place.host, place.port)
        and (flow["verdict"], flow["rule"]) == (place.verdict, place.rule)
        and process is not None
        and process["pid"] == pid
        and (flow["bytes_received"] > 0) == (place.verdict == "allow")
    )


# The story

_INTRODUCTION = f"""\
netns-graft has set up a small host with a small Internet, in network namespaces
of their own. Nothing leaves this machine. There are:

  {ALLOWED:26} a web server, and a UDP echo
  {FORBIDDEN:26} a web server
  {METADATA:26} where a cloud hands its machines their secrets
  {HOST_NAME:26} the host itself, with a service on its loopback

1. An ordinary program on that host gets everywhere:
"""

_THE_GRAFT = """
2. The same program, unchanged, in a graft: a network namespace of its own, with
   netns-graft's forwarder as the only way out. One name is allowed:
"""

_THE_RECORD = """
3. What the forwarder recorded. The PID is a real one, as ps would show it:
"""

_FAREWELL = """
That was netns-graft. Of that host, its Internet and the graft nothing is left.
On your own network, for any program:

  netns-graft exec --summary -- COMMAND              a table of flows at the end
  netns-graft exec --flows flows.jsonl -- COMMAND    each flow in full, as JSON
  netns-graft exec --help                            rules, proxies, DNS"""

_ROW = "  {:18} {:30} {:7} {:>7} {:>9}"


def _say(text: str = "") -> None:
    # A character that the terminal's encoding lacks is no reason to fail.
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _say_visits(command: str, visits: Visits) -> None:
    _say(f"  {command}")
    _say(f"  PID {visits.pid}")
    for url, outcome in visits.outcomes.items():
        _say(f"  {printable(url):38} {printable(outcome)}")


def _say_flows(flows: Sequence[Record]) -> None:
    """A row for each place, in the order in which they were visited, and what there is to say of it."""
    _say(_ROW.format("process", "destination", "verdict", "sent", "received"))
    for destination, tries in _by_destination(flows).items():
        process = tries[0]["process"]
        who = f"{os.path.basename(process['exe'] or '?')} {process['pid']}" if process else "unknown"
        sent, received = (size(sum(flow[which] for flow in tries)) for which in ("bytes_sent", "bytes_received"))
        _say(printable(_ROW.format(who, destination, tries[-1]["verdict"], sent, received)))
        _say(f"{_explanation(destination, tries)}\n")


def _by_destination(flows: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for flow in flows:
        found.setdefault(_name_and_port(flow), []).append(flow)
    return found


def _name_and_port(flow: Record) -> str:
    to = flow["destination"]
    return f"{to['host'] or to['address']}:{to['port']}"


def _explanation(destination: str, tries: Sequence[Record]) -> str:
    last = tries[-1]
    why = next((place.why for place in PLACES if f"{place.host}:{place.port}" == destination), "")
    why = why.format(
        address=last["destination"]["address"],
        resolved=last["destination"]["resolved"],
        tries=", twice, for the name has an IPv6 address and an IPv4 one" if len(tries) > 1 else "",
    )
    return _filled(f"Rule: {last['rule']}. Upstream: {last['upstream'] or 'none'}. {why}", 4)


def _filled(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(
        printable(text), _WIDTH - 2, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )


def _say_the_rest(flows: Sequence[Record], requests: Sequence[Record]) -> None:
    questions = sum(flow["protocol"] == "dns" for flow in flows)
    seen = ", ".join(f"one for {request['host']} from {request['from']}" for request in requests) or "none"
    for text in (
        f"{questions} DNS questions were answered within the graft, by the forwarder. Any other UDP is closed,"
        " which is why the echo was refused.",
        f"Requests that the servers saw meanwhile: {seen}, which is the host.",
    ):
        _say(_filled(text, 2))


def _json_lines(data: bytes) -> list[Record]:
    return [json.loads(line) for line in data.splitlines()]


def _last_line(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
