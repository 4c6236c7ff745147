"""Which sub-ids a user has: /etc/subuid as newuidmap reads it, and whatever else may stand there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.linux import userns
from netns_graft.linux.userns import _ranges

OWNERS = {"1000", "ada"}


def ranges(tmp_path: Path, text: str | bytes) -> tuple[tuple[int, int], ...]:
    file = tmp_path / "subuid"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return _ranges(str(file), OWNERS)


@pytest.mark.parametrize(("text", "expected"), [
    ("ada:100000:65536\n", ((100000, 65536),)),
    ("1000:100000:65536\n", ((100000, 65536),)),
    ("ada:100000:65536", ((100000, 65536),)),  # no newline at the end
    ("ada:100000:65536\nbob:165536:65536\nada:300000:10\n", ((100000, 65536), (300000, 10))),
    ("bob:100000:65536\n", ()),
    ("adam:1:2\nxada:1:2\nADA:1:2\n", ()),
    ("", ()),
    ("# a comment\n\nada:100000:65536\n", ((100000, 65536),)),
    ("ada:100000:0\n", ()),
    ("ada\nada:\nada:1\nada:1:\nada::5\nada:x:5\nada:1:y\nada:-1:5\nada:1:-5\n", ()),
    ("ada:1:2:3\n", ()),
    ("ada: 1:2\n", ()),
    ("ada:²:2\nada:1:²\n", ()),  # digits to str.isdigit, numbers to nobody
    ("ada:" + "9" * 5000 + ":1\n", ()),  # more digits than int() reads
    (b"\xff\xfe:1:2\nada:7:8\n", ((7, 8),)),
])  # fmt: skip
def test_lines(tmp_path: Path, text: str | bytes, expected: tuple[tuple[int, int], ...]) -> None:
    assert ranges(tmp_path, text) == expected


def test_no_file(tmp_path: Path) -> None:
    assert _ranges(str(tmp_path / "none"), OWNERS) == ()


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    assert _ranges(str(tmp_path), OWNERS) == ()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subids")


lines = st.tuples(st.sampled_from(["ada", "1000", "bob"]), st.text("017²٣-x: \x85", max_size=6)).map(":".join)


@given(st.one_of(st.binary(), st.lists(lines, max_size=4).map(lambda some: "\n".join(some).encode())))
def test_any_file_gives_ranges(place: Path, content: bytes) -> None:
    for first, count in ranges(place, content):
        assert first >= 0 and count > 0


def test_a_user_that_has_no_entry_anywhere() -> None:
    """An id without a name: nothing is granted, nothing is raised."""
    assert userns.sub_ids(2_000_000_000) == userns.SubIds((), ())


def test_ours() -> None:
    granted = userns.sub_ids(os.getuid())
    for first, count in (*granted.uids, *granted.gids):
        assert first > 0 and count > 0
