"""The forwarders there are, by their sockets in the runtime directory. Blocking; milliseconds each."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from netns_graft.linux import control_sockets

_SECONDS = 5.0
_LINE = 1 << 20

Message = dict[str, Any]


def names(directory: str) -> list[str]:
    """Of every socket there, stale ones included; in the order of their beginning."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(".sock") and not entry.name.startswith("."):
                    found.append((entry.stat(follow_symlinks=False).st_ctime, entry.name.removesuffix(".sock")))
    except FileNotFoundError:
        pass
    return [name for _, name in sorted(found)]


def ask(directory: str, name: str, question: Message) -> Message:
    """One line of answer. OSError when nobody answers; a stale socket is removed on the way."""
    with _asked(directory, name, question) as sock, sock.makefile("rb") as lines:
        return _message(lines.readline(_LINE))


def ask_and_wait(directory: str, name: str, question: Message) -> Message:
    """As ``ask``, then wait for the end of file: after "finish" and "leave", for the forwarder's end."""
    with _asked(directory, name, question) as sock, sock.makefile("rb") as lines:
        answer = _message(lines.readline(_LINE))
        if answer.get("finished"):
            lines.readline(_LINE)
        return answer


def statuses(directory: str) -> Iterator[Message]:
    """What each forwarder tells about itself. Those that have ended meanwhile are left out."""
    for name in names(directory):
        try:
            status = ask(directory, name, {"do": "status"})
        except OSError:
            continue
        if "error" not in status:
            yield status


def _asked(directory: str, name: str, question: Message) -> socket.socket:
    path = f"{directory}/{name}.sock"
    try:
        sock = control_sockets.connect(path, _SECONDS)
    except ConnectionRefusedError:
        control_sockets.remove_stale(path)
        raise
    try:
        sock.sendall(json.dumps(question).encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def _message(line: bytes) -> Message:
    if not line.endswith(b"\n"):
        raise OSError("no answer")
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise OSError("no answer of ours")
    return answer
