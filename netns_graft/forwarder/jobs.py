"""The slow half of the event loop: tasks that end with the workload."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Jobs:
    """Tasks of a group that can be cancelled together; none is begun once the end has come.

    A task that fails takes the whole group, and with it the workload's network: nothing goes on by guesswork.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Begin ``work``; None when the end has come."""
        if self._stopped:
            work.close()
            return None
        task = self._group.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def stop(self) -> None:
        self._stopped = True
        for task in list(self._running):
            task.cancel()
