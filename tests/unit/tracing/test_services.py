"""Which Unix sockets a traced program is kept from."""

import os
import socket
import struct
from errno import EACCES, ENOENT
from pathlib import Path

import pytest

from netns_graft.tracing.services import Services


def raw(path: bytes) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + path


@pytest.fixture
def services(tmp_path: Path) -> Services:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "nscd").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "ours").mkdir()
    return Services([str(tmp_path / "real" / "nscd"), "/nowhere/avahi"], str(tmp_path / "ours"))


def test_name_services_are_not_there(services: Services, tmp_path: Path) -> None:
    for path in (tmp_path / "real" / "nscd", tmp_path / "link" / "nscd", tmp_path / "real" / ".." / "link" / "nscd"):
        assert services.refusal(os.getpid(), raw(os.fsencode(path))) == ENOENT
        assert services.refusal(os.getpid(), raw(os.fsencode(path) + b"\0rubbish")) == ENOENT
    assert services.refusal(os.getpid(), raw(b"/nowhere/avahi")) == ENOENT


def test_our_own_are_closed(services: Services, tmp_path: Path) -> None:
    assert services.refusal(os.getpid(), raw(os.fsencode(tmp_path / "ours" / "workloads" / "a.sock"))) == EACCES
    assert services.refusal(os.getpid(), raw(os.fsencode(tmp_path / "ours" / "hook.sock") + b"\0")) == EACCES


def test_relative_to_where_the_program_is(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert services.refusal(os.getpid(), raw(b"link/nscd\0")) == ENOENT
    assert services.refusal(os.getpid(), raw(b"ours/x\0")) == EACCES


def test_all_others_are_the_programs(services: Services, tmp_path: Path) -> None:
    for path in (
        b"", b"\0abstract", b"/nowhere/other", b"\xff\xfe", os.fsencode(tmp_path / "ours-not" / "x"),
        os.fsencode(tmp_path / "real" / "nscd") + b"2",
    ):  # fmt: skip
        assert services.refusal(os.getpid(), raw(path)) == 0


def test_a_process_that_is_gone(services: Services) -> None:
    assert services.refusal(2**22 + 1, raw(b"relative")) == 0
