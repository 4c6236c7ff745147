"""What is taken from a directory is told; what is put there is not."""

from __future__ import annotations

import os
import select
import shutil
from pathlib import Path

import pytest

from netns_graft.linux import watch


def is_told(watch_fd: int) -> bool:
    told = bool(select.select([watch_fd], [], [], 0)[0])
    watch.read_empty(watch_fd)
    return told


def test_losses_are_told_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in ("one", "two", "three"):
        (place / name).touch()
    watch_fd = watch.losses_of(str(place))
    try:
        (place / "four").write_text("new")
        assert not is_told(watch_fd)
        (place / "one").unlink()
        assert is_told(watch_fd)
        (place / "two").rename(tmp_path / "elsewhere")
        assert is_told(watch_fd)
        assert not is_told(watch_fd), "once told, it is quiet"
        shutil.rmtree(place)
        assert is_told(watch_fd)
    finally:
        os.close(watch_fd)


def test_a_directory_that_moves(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    watch_fd = watch.losses_of(str(place))
    place.rename(tmp_path / "elsewhere")
    assert is_told(watch_fd)
    os.close(watch_fd)


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        watch.losses_of(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        watch.losses_of(str(tmp_path / "nothing"))
