"""Tasks that end with the workload."""

from __future__ import annotations

import asyncio

import pytest

from netns_graft.forwarder.jobs import Jobs


def test_they_run_and_are_waited_for() -> None:
    async def main() -> list[int]:
        done: list[int] = []

        async def work(number: int) -> None:
            await asyncio.sleep(0)
            done.append(number)

        async with asyncio.TaskGroup() as group:
            jobs = Jobs(group)
            for number in range(3):
                jobs.create_task(work(number))
        return done

    assert asyncio.run(main()) == [0, 1, 2]


def test_stop_cancels_what_runs_and_begins_nothing_more() -> None:
    async def main() -> tuple[list[str], int]:
        ended: list[str] = []

        async def waits(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        async with asyncio.TaskGroup() as group:
            jobs = Jobs(group)
            jobs.create_task(waits("one"))
            jobs.create_task(waits("two"))
            await asyncio.sleep(0)
            jobs.stop()
            jobs.create_task(waits("late"))  # closed at once: no "never awaited" warning either
            jobs.stop()
        return sorted(ended), len(asyncio.all_tasks())

    assert asyncio.run(main()) == (["one", "two"], 1)


def test_one_that_fails_takes_all_with_it() -> None:
    async def main() -> None:
        async def fails() -> None:
            raise LookupError("nobody expected this")

        async def waits() -> None:
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            jobs = Jobs(group)
            jobs.create_task(waits())
            jobs.create_task(fails())

    with pytest.raises(ExceptionGroup) as failure:
        asyncio.run(main())
    assert [type(error) for error in failure.value.exceptions] == [LookupError]
