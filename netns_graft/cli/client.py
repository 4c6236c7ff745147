"""How grafted workloads fare: what each forwarder says on its own status socket, whoever started it.

Every forwarder has one, a broker's and ``exec``'s alike, so a broker that died or never was makes no difference.
``ps`` and ``flows`` start in some 30 ms for this: no aiohttp, no pydantic, no argparse.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from netns_graft.broker import workloads as sockets
from netns_graft.errors import GraftError
from netns_graft.linux import control_sockets, places

_PATIENCE = 2.0  # seconds for one answer
_NEWCOMERS = 0.1  # seconds between looks for new workloads
_CHUNK = 1 << 16

Message = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Workload:
    """``name``, where to ask, and what the forwarder said of it."""

    name: str
    path: str
    status: Message


def workloads() -> list[Workload]:
    """Everything of ours that is grafted now, oldest first. Sockets that nobody listens on are removed."""
    directory = _directory()
    found = [
        Workload(str(status.get("name")), f"{directory}/{status.get('name')}.sock", status)
        for status in sockets.statuses(directory)
    ]
    return sorted(found, key=lambda workload: workload.status.get("started") or 0)


def find(wanted: str) -> Workload:
    """By its name, its container's name, or the beginning of its container's id. ``GraftError`` for none or several."""
    known = workloads()
    said = ("name", "container_name", "container_id")
    near = [one for one in known if wanted in [one.status.get(key) for key in said]]
    near = near or [one for one in known if str(one.status.get("container_id") or "").startswith(wanted)]
    if not near:
        raise GraftError(f"no grafted workload {wanted!r}", hint="netns-graft ps shows those that run")
    if len(near) > 1:
        raise GraftError(f"{wanted!r} is the beginning of several: {', '.join(one.name for one in near)}")
    return near[0]


class Feed:
    """Flow records of one workload as they come: those kept, then, with ``follow``, each as it ends.

    Owns its connection.
    """

    def __init__(self, path: str, *, follow: bool) -> None:
        self.sock: socket.socket = control_sockets.connect(path, _PATIENCE)
        self._begun = b""
        self.sock.sendall(json.dumps({"do": "flows", "follow": follow}).encode() + b"\n")
        self.sock.settimeout(None)

    def read(self) -> list[Message] | None:
        """The records that are whole by now, after waiting for more; None when there will be none."""
        try:
            data = self.sock.recv(_CHUNK)
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        lines = (self._begun + data).split(b"\n")
        self._begun = lines.pop()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.sock.close()


def past(path: str) -> Iterator[Message]:
    """The records that a workload's forwarder keeps. None at all when it has ended meanwhile."""
    try:
        feed = Feed(path, follow=False)
    except OSError:
        return
    with contextlib.closing(feed):
        while (records := feed.read()) is not None:
            yield from records


def follow(paths: Iterable[str], *, newcomers: bool) -> Iterator[Message]:
    """The records of these workloads as they come, until all have ended; with ``newcomers`` those of every workload
    that begins meanwhile too, for ever.
    """
    directory = _directory()
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as stack:
        feeds: dict[str, Feed] = {}

        def add(path: str) -> None:
            with contextlib.suppress(OSError):  # it ended just now
                feed = feeds[path] = Feed(path, follow=True)
                stack.callback(feed.close)
                waiting.register(feed.sock, selectors.EVENT_READ, path)

        for path in paths:
            add(path)
        while feeds or newcomers:
            for key, _ in waiting.select(_NEWCOMERS if newcomers else None):
                records = feeds[key.data].read()
                if records is None:
                    waiting.unregister(key.fileobj)
                    feeds.pop(key.data).close()
                else:
                    yield from records
            for name in sockets.names(directory) if newcomers else ():
                if f"{directory}/{name}.sock" not in feeds:
                    add(f"{directory}/{name}.sock")


def _directory() -> str:
    try:
        return places.workloads_dir(places.runtime_dir())
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
