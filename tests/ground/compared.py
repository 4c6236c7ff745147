"""One program twice, direct and carried: what it tells must be the same."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

from ground.carried import Carried, Seen
from ground.child import fork, wait


def same(work: Callable[[], object], **network: Any) -> tuple[Any, Seen]:
    """``work()`` returns what the program saw. Returns that, and what the carrier was told."""
    files = [os.memfd_create(name) for name in ("direct", "carried")]
    try:
        assert wait(fork(lambda: _tell(work, files[0]))) == 0
        seen = Carried(lambda _: _tell(work, files[1]), **network).finish()
        expected, told = (pickle.loads(os.pread(fd, 1 << 24, 0)) for fd in files)
    finally:
        for fd in files:
            os.close(fd)
    assert told == expected
    return told, seen


def _tell(work: Callable[[], object], fd: int) -> None:
    os.write(fd, pickle.dumps(work()))
