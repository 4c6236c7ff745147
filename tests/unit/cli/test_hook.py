"""``hook install|uninstall|status`` as far as they need no podman; tests/engines has the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netns_graft.cli.main import main

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home, a PATH without podman, and an interpreter that finds the package by itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "CONTAINERS_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("netns_graft.cli.hook._refuse_lost_package", lambda: None)
    return tmp_path


def test_in_a_directory_of_ones_own(home, capsys):
    directory = home / "hooks"
    assert main(["hook", "install", "--hooks-dir", str(directory)]) == 0
    assert f"wrote     {directory}/netns-graft-createRuntime.json" in capsys.readouterr().out
    assert main(["hook", "install", "--hooks-dir", str(directory)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["hook", "status", "--hooks-dir", str(directory)]) == 1
    assert "podman is not installed, so nothing is proved" in capsys.readouterr().out
    (directory / "netns-graft-poststop.json").unlink()
    main(["hook", "status", "--hooks-dir", str(directory)])
    assert "BAD" in capsys.readouterr().out
    assert main(["hook", "uninstall", "--hooks-dir", str(directory)]) == 0
    assert not directory.exists()
    capsys.readouterr()
    assert main(["hook", "uninstall", "--hooks-dir", str(directory)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_status_of_nothing(home, capsys):
    assert main(["hook", "status", "--hooks-dir", str(home / "none")]) == 1
    assert capsys.readouterr().out.startswith("not installed")


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["install", "--nosuch"], ["install", "--system", "--hooks-dir", "x"]]
)
def test_wrong_usage(words, capsys):
    assert main(["hook", *words]) == 2
    assert "netns-graft: hint: netns-graft hook --help" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run", "image"], ["build", "."]])
def test_without_podman_there_is_one_line(command, capsys):
    assert main(command) == 125
    assert capsys.readouterr().err.startswith("netns-graft: error: podman is not installed\n")


def test_the_system_is_roots(capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["hook", "install", "--system"]) == 125
    assert "--system is for root" in capsys.readouterr().err


def test_a_users_install_needs_no_root(home, capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("netns_graft.cli.hook.places.runtime_dir", lambda environ: str(home))
    monkeypatch.setattr("netns_graft.cli.hook.log_file", lambda: str(home / "log"))
    before = sorted(home.rglob("*"))
    assert main(["hook", "install"]) == 0
    assert Path(home, ".config/containers/containers.conf.d/99-netns-graft.conf").exists()
    assert main(["hook", "uninstall"]) == 0
    assert sorted(home.rglob("*")) == before
