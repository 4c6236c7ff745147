"""Asks forwarders how their workloads fare, each on its own status socket, whoever started it.

Every forwarder has one, a broker's and ``exec``'s alike, so a broker that died or never was makes no difference.
``ps`` and ``flows`` start in some 30 ms for this: no aiohttp, no pydantic, no argparse.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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
    found = []
    for path in _sockets():
        try:
            status = ask(path, {"do": "status"})
        except ConnectionRefusedError:
            control_sockets.remove_stale(path)
        except (OSError, ValueError):
            pass  # it ended just now, or is too busy to say
        else:
            if "error" not in status:
                found.append(Workload(str(status.get("name")), path, status))
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


def ask(path: str, question: Message) -> Message:
    """One line out, one line in. ``OSError``; ``ValueError`` for no JSON."""
    with control_sockets.connect(path, _PATIENCE) as sock:
        sock.sendall(json.dumps(question).encode() + b"\n")
        data = b""
        while not data.endswith(b"\n") and (part := sock.recv(_CHUNK)):
            data += part
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


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
            for path in _sockets() if newcomers else ():
                if path not in feeds:
                    add(path)


def _sockets() -> list[str]:
    try:
        directory = places.workloads_dir(places.runtime_dir())
        names = os.listdir(directory)
    except OSError as error:
        raise GraftError(f"cannot read {error.filename}: {error.strerror}") from None
    paths = []
    for name in sorted(names):
        path = f"{directory}/{name}"
        if name.endswith(".sock") and not name.startswith("."):
            paths.append(path)
    return paths
