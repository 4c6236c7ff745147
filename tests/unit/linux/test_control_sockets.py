"""Control sockets: how they appear, who may use them. Asked of the kernel."""

import os
from pathlib import Path

import pytest
from ground.elsewhere import connect_from_elsewhere

from netns_graft.linux import control_sockets


def test_a_socket_of_our_own_namespace_may_ask(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with control_sockets.listen(path) as listener, control_sockets.connect(path, 5.0):
        accepted, _ = listener.accept()
        with accepted:
            assert control_sockets.refusal(accepted) is None
            assert control_sockets.is_in_our_table(accepted)
            assert control_sockets.peer(accepted) == (os.getpid(), os.getuid(), os.getgid())


def test_a_socket_of_another_namespace_is_refused_whoever_holds_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with control_sockets.listen(path) as listener:
        asker = connect_from_elsewhere(path)
        accepted, _ = listener.accept()
        with asker, accepted:
            assert "another network namespace" in (control_sockets.refusal(accepted) or "")
            assert not control_sockets.is_in_our_table(accepted)


def test_two_listeners_do_not_share_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with control_sockets.listen(path), pytest.raises(FileExistsError):
        control_sockets.listen(path)
    assert os.listdir(tmp_path) == ["a.sock"], "no temporary name stays"


def test_a_stale_socket_is_removed_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with control_sockets.listen(path):
        assert not control_sockets.remove_stale(path)
        assert os.path.exists(path)
    assert control_sockets.remove_stale(path)
    assert not os.path.exists(path)
    assert control_sockets.remove_stale(path), "nothing there is as good"


def test_only_our_own_socket_is_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    control_sockets.listen(path).close()
    inode = os.lstat(path).st_ino
    control_sockets.remove(path, inode + 1)
    assert os.path.exists(path)
    control_sockets.remove(path, inode)
    assert not os.path.exists(path)


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    path = str(directory / "a.sock")
    with control_sockets.listen(path) as listener, control_sockets.connect(path, 5.0):
        listener.accept()[0].close()
    assert os.listdir(directory) == ["a.sock"]
