"""The table of flows at the end. ``rich`` is imported here when there is something to draw, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from netns_graft.cli.terminal import size
from netns_graft.journal import Group, Tally
from netns_graft.lines import printable

if TYPE_CHECKING:
    from rich.table import Table

_MOST_ROWS = 200


def print_summary(tally: Tally, file: TextIO) -> None:
    """Process, destination, verdict, upstream, bytes and time; denied flows first, then the biggest."""
    from rich.console import Console

    console = Console(file=file, markup=False, highlight=False, emoji=False)
    groups = sorted(tally.groups, key=_order)
    try:
        if groups:
            console.print(_table(groups[:_MOST_ROWS]))
        if len(groups) > _MOST_ROWS:
            console.print(f"... and {len(groups) - _MOST_ROWS} more")
        console.print(_footer(tally))
    except OSError:
        pass  # the terminal is gone, and with it whoever would have read this


def print_steps(steps: Sequence[tuple[str, Tally]], file: TextIO) -> None:
    """The flows of each step of a build below its name; steps without any are only counted."""
    from rich.console import Console

    console = Console(file=file, markup=False, highlight=False, emoji=False)
    contacting = [(title, tally) for title, tally in steps if tally.groups or tally.questions]
    try:
        for title, tally in contacting:
            console.print(printable(title), style="bold", overflow="ellipsis", no_wrap=True)
            if tally.groups:
                console.print(_table(sorted(tally.groups, key=_order)[:_MOST_ROWS]))
            console.print(_footer(tally))
        silent = len(steps) - len(contacting)
        if silent:
            console.print(f"{_count(silent, 'RUN step')} contacted nothing")
        elif not steps:
            console.print("no RUN step was run: nothing to contact, or all from the cache")
    except OSError:
        pass


def _order(group: Group) -> tuple[bool, bool, int]:
    return group.verdict == "allow", group.outcome == "ok", -(group.bytes_sent + group.bytes_received)


def _table(groups: list[Group]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("process", "destination", "verdict", "upstream"):
        table.add_column(heading, overflow="fold")
    for heading in ("sent", "received", "time"):
        table.add_column(heading, justify="right", overflow="fold")
    for group in groups:
        style = "bold red" if group.verdict != "allow" else "yellow" if group.outcome != "ok" else ""
        cells = (
            _process(group),
            _destination(group),
            group.verdict,
            _upstream(group),
            size(group.bytes_sent),
            size(group.bytes_received),
            _seconds(group.seconds),
        )
        # Text, not str: the table would read markup in a str.
        table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
    return table


def _process(group: Group) -> str:
    if group.process is None:
        return "unknown"
    return group.process if group.pid is None else f"{group.process} {group.pid}"


def _destination(group: Group) -> str:
    text = f"{group.destination} (dns)" if group.protocol == "dns" else group.destination
    return f"{text} ×{group.count}" if group.count > 1 else text


def _upstream(group: Group) -> str:
    """Where it left, and how it ended if not well; or the rule for which it did not leave."""
    if group.verdict != "allow":
        return f"none: {group.rule}"
    upstream = group.upstream or "none"
    return upstream if group.outcome == "ok" else f"{upstream}: {group.outcome}"


def _footer(tally: Tally) -> str:
    sent = sum(group.bytes_sent for group in tally.groups)
    received = sum(group.bytes_received for group in tally.groups)
    parts = [f"{_count(tally.total, 'flow')}, {tally.denied} denied"]
    if tally.unattributed:
        parts.append(f"{tally.unattributed} without a process")
    if tally.questions:
        parts.append(_count(tally.questions, "DNS question"))
    parts.append(f"{size(sent)} sent, {size(received)} received")
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
