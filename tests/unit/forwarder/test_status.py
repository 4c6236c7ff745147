"""The status socket as an asker sees it: real sockets, one loop."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from netns_graft.flow import Flow
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.status import REMEMBERED, Follower, Message, Recent, StatusSocket
from netns_graft.linux import control_sockets


def flow(number: int) -> Flow:
    return Flow(str(number), "w", "tcp", "198.18.0.1", 1, "93.184.216.34", 80, 0.0, bytes_sent=3, bytes_received=4)


class Asker:
    """One connection. Blocking calls run in a thread, so the loop under test goes on."""

    def __init__(self, path: str) -> None:
        self.sock = control_sockets.connect(path, 5.0)
        self._file = self.sock.makefile("rb")

    async def ask(self, line: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, line)

    async def line(self) -> dict[str, Any] | None:
        data = await asyncio.to_thread(self._file.readline)
        return json.loads(data) if data else None

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def with_socket(tmp_path: Path, test: Callable[[str, Recent], Awaitable[None]]) -> None:
    async def run() -> None:
        recent = Recent()

        async def status(_question: Message) -> Message:
            return {"name": "w"}

        async def finish(_question: Message) -> Message:
            return {"finished": True}

        path = str(tmp_path / "w.sock")
        async with asyncio.TaskGroup() as group:
            jobs = Jobs(group)
            served = StatusSocket.open(path)
            served.serve(jobs, recent, {"status": status, "finish": finish})
            try:
                await test(path, recent)
            finally:
                jobs.stop()
                served.close()

    asyncio.run(run())
    assert not list(tmp_path.iterdir()), "its socket goes with it"


def test_a_question_has_one_line_of_answer(tmp_path: Path) -> None:
    async def test(path: str, _recent: Recent) -> None:
        asker = Asker(path)
        await asker.ask(b'{"do": "status"}\n')
        assert await asker.line() == {"name": "w"}
        assert await asker.line() is None
        asker.close()

    with_socket(tmp_path, test)


@pytest.mark.parametrize("question", [b"\n", b"{\n", b"[]\n", b"\xff\n", b"x" * 70_000, b'{"do": "dance"}\n', b"{}\n"])
def test_nonsense_is_answered_with_an_error(tmp_path: Path, question: bytes) -> None:
    async def test(path: str, _recent: Recent) -> None:
        asker = Asker(path)
        await asker.ask(question)
        assert "error" in (await asker.line() or {})
        asker.close()

    with_socket(tmp_path, test)


def test_an_asker_that_leaves_at_once_harms_nobody(tmp_path: Path) -> None:
    async def test(path: str, _recent: Recent) -> None:
        control_sockets.connect(path, 5.0).close()
        leaver = Asker(path)
        await leaver.ask(b'{"do": "flows", "follow": true}\n')
        leaver.close()
        asker = Asker(path)
        await asker.ask(b'{"do": "status"}\n')
        assert await asker.line() == {"name": "w"}
        asker.close()

    with_socket(tmp_path, test)


def test_flows_are_told_up_to_now_and_then_as_they_end(tmp_path: Path) -> None:
    async def test(path: str, recent: Recent) -> None:
        recent.add(flow(1))
        asker, follower = Asker(path), Asker(path)
        await asker.ask(b'{"do": "flows"}\n')
        assert (await asker.line() or {})["id"] == "1"
        assert await asker.line() is None
        await follower.ask(b'{"do": "flows", "follow": true}\n')
        assert (await follower.line() or {})["id"] == "1"
        recent.add(flow(2))
        assert (await follower.line() or {})["id"] == "2"
        recent.add(flow(3))
        assert (await follower.line() or {})["id"] == "3"
        asker.close()
        follower.close()

    with_socket(tmp_path, test)


def test_after_finish_the_end_of_file_waits_for_the_end(tmp_path: Path) -> None:
    asker: list[Asker] = []

    async def test(path: str, _recent: Recent) -> None:
        asker.append(Asker(path))
        await asker[0].ask(b'{"do": "finish"}\n')
        assert await asker[0].line() == {"finished": True}
        asker[0].sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            asker[0].sock.recv(1)

    with_socket(tmp_path, test)
    assert asker[0].sock.recv(1) == b""
    asker[0].close()


def test_only_the_last_flows_are_remembered_and_all_bytes_counted() -> None:
    recent = Recent()
    for number in range(REMEMBERED + 5):
        recent.add(flow(number))
    assert [recent.flows[0].id, len(recent.flows)] == ["5", REMEMBERED]
    assert (recent.bytes_sent, recent.bytes_received) == (3 * (REMEMBERED + 5), 4 * (REMEMBERED + 5))


def test_a_follower_that_does_not_read_is_told_how_much_it_lost() -> None:
    async def run() -> tuple[int, int]:
        follower = Follower()
        for number in range(1500):
            follower.add(flow(number))
        return len(await follower.next()), follower.lost

    assert asyncio.run(run()) == (1000, 500)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "w.sock")
    socket_left_behind = control_sockets.listen(path)
    with socket_left_behind, pytest.raises(FileExistsError):
        StatusSocket.open(path)

    async def reopen() -> None:
        StatusSocket.open(path).close()

    asyncio.run(reopen())
    assert not Path(path).exists()
