"""Unix sockets in the file system that a traced program is kept from: name services of the host, which would resolve
names past us (libc goes on to DNS when they are not there), and netns-graft's own, which rule over flows.

In mode route the former are covered by mounts and the latter know by the network namespace who calls; here there are
no mounts of ours, and the namespace is shared. A path is followed as the host sees it: this guards programs against
what their libraries do unasked, not the host against programs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from errno import EACCES, ENOENT

from netns_graft.linux import proc

_FAMILY = 2  # bytes of sun_family


class Services:
    """``names``: sockets of name services; ``own``: the directory of ours, if there is one."""

    def __init__(self, names: Sequence[str], own: str | None) -> None:
        self._names = frozenset(os.path.realpath(name) for name in names)
        self._own = f"{os.path.realpath(own)}/" if own is not None else None

    def refusal(self, pid: int, raw: bytes) -> int:
        """The errno for a connect() of process ``pid`` to this sockaddr_un; 0: it may go on."""
        path = raw[_FAMILY:].partition(b"\0")[0]
        if not path:
            return 0  # abstract, or none
        place = os.path.realpath(os.path.join(proc.directory(pid), os.fsdecode(path)))
        if place in self._names:
            return ENOENT
        if self._own is not None and place.startswith(self._own):
            return EACCES
        return 0
