"""Lines for whoever watches: on stderr, one each, with foreign bytes made harmless."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """The text with control, direction-changing and undecodable characters as escapes: fit for a terminal.

    Program names, arguments and host names are the workload's to choose; an escape sequence in one of them
    must not reach the terminal.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def say(kind: str, text: str) -> None:
    """One line on stderr, ``netns-graft: KIND: TEXT``; nobody listening is no error."""
    if sys.stderr is None:  # closed by whoever started us; print() would take stdout instead
        return
    try:
        print(f"netns-graft: {kind}: {printable(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a closed terminal or pipe, a closed stderr
        pass


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: the byte itself
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
