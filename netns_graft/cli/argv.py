"""Passwords out of ``ps``: what ``--proxy`` says is masked in this process's own argument memory.

``/proc/PID/cmdline`` is for everybody on the machine to read and shows the memory in which the kernel put the
arguments. Python has copied them long before we run, so that memory is ours to write over. Until then, a few
milliseconds after the start, a password can be seen: the environment or a file is the better place for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from netns_graft.linux.argv import argument_memory, overwrite

# From the colon after the user to the last "@" before the next URL of the chain. A password may hold any
# byte.
_PASSWORD = re.compile(rb"://[^:@]*:(.*?)@[^@]*?(?=,[A-Za-z0-9+.-]+://|,direct\b|\Z)", re.DOTALL)


def hide_secrets_in_ps(argv: Sequence[str]) -> bool:
    """Mask the passwords of every ``--proxy`` in ``argv`` (``sys.argv``) with stars, as ``ps`` sees it.

    Python's own arguments may stand before ours. True when no password is to be seen any more; False, with
    nothing changed, when the memory is not what we think it is.
    """
    words = [os.fsencode(word) for word in argv[1:]]
    spans = _password_spans(words)
    if not spans:
        return True
    try:
        address, memory = argument_memory()
        ours = b"\0".join(words) + b"\0"
        if not memory.endswith(b"\0" + ours):
            return False
        start = address + len(memory) - len(ours)
        for first, last in spans:
            overwrite(start + first, b"*" * (last - first))
    except OSError:
        return False
    return True


def _password_spans(words: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where passwords stand in the words joined by single bytes: (first byte, one after the last)."""
    spans = []
    at = 0
    before = b""
    for word in words:
        if word.startswith(b"--proxy=") or before == b"--proxy":
            spans += [(at + found.start(1), at + found.end(1)) for found in _PASSWORD.finditer(word)]
        at += len(word) + 1
        before = word
    return [(first, last) for first, last in spans if last > first]
