"""How grafted workloads fare: what a broker's HTTP API says of those that it knows, and for all others what their
forwarders say on their own status sockets.

Every forwarder has such a socket, a broker's and ``exec``'s alike, so a broker that died, is stuck or never was makes
no difference. ``ps`` and ``flows`` start in some 30 ms for this, and take 12 more where there is a broker: no aiohttp,
no pydantic, no argparse.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from netns_graft.broker import workloads as sockets
from netns_graft.cli import api
from netns_graft.errors import GraftError
from netns_graft.linux import control_sockets, places

_PATIENCE = 2.0  # seconds for one answer
_API_PATIENCE = 1.0  # seconds for a broker's; forwarders can be asked without it
_TWICE = 2000  # flows that are known again when they come again; a forwarder keeps 1,000
_NEWCOMERS = 0.1  # seconds between looks for new workloads
_CHUNK = 1 << 16

Message = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Workload:
    """``name``, the forwarder's own socket, what was said of it, and the broker's socket if that is who said it."""

    name: str
    path: str
    status: Message
    api: str | None = None


def workloads() -> list[Workload]:
    """Everything of ours that is grafted now, oldest first. Sockets that nobody listens on are removed."""
    directory = _directory()
    found = _told_by_a_broker(directory)
    for name in sockets.names(directory):
        if name not in found:
            status = _told_by_itself(directory, name)
            if status is not None:
                found[name] = Workload(name, f"{directory}/{name}.sock", status)
    return sorted(found.values(), key=lambda workload: workload.status.get("started") or 0)


def _told_by_a_broker(directory: str) -> dict[str, Workload]:
    """By name: those that the first broker which answers knows. Each of them would say the same."""
    for path in api.sockets(os.path.dirname(directory)):
        try:
            answer = api.get(path, "/v1/workloads", _API_PATIENCE)
            told = {str(status["name"]): status for status in answer["workloads"]}
        except (OSError, KeyError, TypeError):
            continue
        return {name: Workload(name, f"{directory}/{name}.sock", status, path) for name, status in told.items()}
    return {}


def _told_by_itself(directory: str, name: str) -> Message | None:
    try:
        status = sockets.ask(directory, name, {"do": "status"})
    except OSError:
        return None  # it has ended
    return status if "error" not in status else None


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

    From the broker if that is who knows it; where the broker falls silent, from the forwarder, without what was told
    already. Owns its connection. OSError when neither answers.
    """

    def __init__(self, workload: Workload, *, follow: bool) -> None:
        self._workload = workload
        self._follow = follow
        self._begun = b""
        self._told: deque[str] = deque(maxlen=_TWICE)
        self._exchange: api.Exchange | None = None
        self.sock: socket.socket
        if workload.api is not None:
            target = f"/v1/workloads/{workload.name}/flows?follow={str(follow).lower()}"
            with contextlib.suppress(OSError):
                self._exchange = api.Exchange(workload.api, target, _PATIENCE)
                self.sock = self._exchange.sock
        if self._exchange is None:
            self._ask_the_forwarder()
        elif follow:
            self.sock.settimeout(None)

    def _ask_the_forwarder(self) -> None:
        self._begun = b""
        self.sock = control_sockets.connect(self._workload.path, _PATIENCE)
        self.sock.sendall(json.dumps({"do": "flows", "follow": self._follow}).encode() + b"\n")
        self.sock.settimeout(None)

    def read(self) -> list[Message] | None:
        """The records that are whole by now, after waiting for more; None when there will be none. ``sock`` may be
        another one afterwards.
        """
        data = self._read_api() if self._exchange is not None else self._read_forwarder()
        if data is None:
            return None
        lines = (self._begun + data).split(b"\n")
        self._begun = lines.pop()
        records = [json.loads(line) for line in lines]
        if self._workload.api is None:
            return records
        fresh = [record for record in records if record.get("id") not in self._told]
        self._told.extend(record["id"] for record in fresh if "id" in record)
        return fresh

    def _read_api(self) -> bytes | None:
        assert self._exchange is not None
        try:
            return self._exchange.read()
        except OSError:  # that broker has left, or was ended
            self._exchange.close()
            self._exchange = None
        try:
            self._ask_the_forwarder()
        except OSError:
            return None
        return b""

    def _read_forwarder(self) -> bytes | None:
        try:
            return self.sock.recv(_CHUNK) or None
        except ConnectionResetError:
            return None

    def close(self) -> None:
        self.sock.close()


def past(workload: Workload) -> Iterator[Message]:
    """The records that a workload's forwarder keeps. None at all when it has ended meanwhile."""
    try:
        feed = Feed(workload, follow=False)
    except OSError:
        return
    with contextlib.closing(feed):
        while (records := feed.read()) is not None:
            yield from records


def follow(known: Iterable[Workload], *, newcomers: bool) -> Iterator[Message]:
    """The records of these workloads as they come, until all have ended; with ``newcomers`` those of every workload
    that begins meanwhile too, for ever.
    """
    directory = _directory()
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as stack:
        feeds: dict[str, Feed] = {}

        def add(workload: Workload) -> None:
            with contextlib.suppress(OSError):  # it ended just now
                feed = feeds[workload.name] = Feed(workload, follow=True)
                stack.callback(feed.close)
                waiting.register(feed.sock, selectors.EVENT_READ, workload.name)

        for workload in known:
            add(workload)
        while feeds or newcomers:
            for key, _ in waiting.select(_NEWCOMERS if newcomers else None):
                feed = feeds[key.data]
                records = feed.read()
                if records is None or feed.sock is not key.fileobj:
                    waiting.unregister(key.fileobj)
                if records is None:
                    feeds.pop(key.data).close()
                    continue
                if feed.sock is not key.fileobj:
                    waiting.register(feed.sock, selectors.EVENT_READ, key.data)
                yield from records
            for name in sockets.names(directory) if newcomers else ():
                if name not in feeds:
                    add(Workload(name, f"{directory}/{name}.sock", {}))


def _directory() -> str:
    try:
        return places.workloads_dir(places.runtime_dir())
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
