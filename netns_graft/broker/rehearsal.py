"""What a spare does before anybody waits for it: a container's question, with nobody behind it.

A fork shares each page with its parent until one of the two writes to it, and Python writes to every object that it
looks at, for it counts who does. So whatever a fork does for the first time takes three times as long as the second
time: the kernel copies page after page. Of a container's start that is some milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket

from netns_graft.broker.bundle import Bundle, name_in
from netns_graft.broker.request import ANNOTATION, parse_request
from netns_graft.linux import control_sockets, proc, workload
from netns_graft.settings import settings_for


def rehearse() -> None:
    """Leaves nothing behind. OSError when this process may not do what it will have to do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.sendall(_question())
        control_sockets.refusal(ours)
        control_sockets.peer(ours)
        request = parse_request(ours.recv(1 << 16))
    workload.open_workload(request.pid).close()
    name_in(request.state_annotations)
    workload.name_by_monitor(request.pid)
    proc.pid_namespace(request.pid)
    settings = settings_for("container", request.options())
    Bundle((), "nameserver 127.0.0.1\n", False).chosen_resolvers("nameserver 192.0.2.53\n")
    Bundle((), "", False).loopback_resolvers()
    asyncio.run(settings.upstreams.check())  # the loop, which the forwarder will need
    settings.upstreams.close()


def _question() -> bytes:
    """As the hook sends it, about ourselves."""
    state = {
        "ociVersion": "1.0.2",
        "id": "0" * 64,
        "status": "created",
        "pid": os.getpid(),
        "bundle": "/nowhere",
        "annotations": {f"{ANNOTATION}default": "deny", f"{ANNOTATION}allow": "example.org:443 192.0.2.0/24"},
    }
    question = {"stage": "createRuntime", "group": None, "annotations": True, "state": state}
    return json.dumps({**question, "options": []}).encode() + b"\n"
