"""Where podman looks for hooks, from files in podman's order."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns_graft.engines.containers_conf import DEFAULT_DIRECTORIES, hook_directories
from netns_graft.errors import ConfigError


def conf(path: Path, *directories: str, append: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ", ".join([f'"{directory}"' for directory in directories] + ([append] if append else []))
    path.write_text(f"[engine]\nhooks_dir = [{words}]\n")
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def read(environ, tmp_path, *, rootless=True, without=None):
    return hook_directories(environ, rootless=rootless, root=str(tmp_path), without=without)


def test_without_a_word_it_is_podmans_default(environ, tmp_path):
    assert read(environ, tmp_path).directories == DEFAULT_DIRECTORIES
    assert read(environ, tmp_path).said_by is None


def test_the_last_file_counts_users_after_the_systems_drop_ins_by_name(environ, tmp_path):
    files = [
        conf(tmp_path / "usr/share/containers/containers.conf", "/1"),
        conf(tmp_path / "etc/containers/containers.conf", "/2"),
        conf(tmp_path / "etc/containers/containers.conf.d/10.conf", "/3"),
        conf(tmp_path / "etc/containers/containers.conf.d/20.conf", "/4"),
        conf(tmp_path / "home/.config/containers/containers.conf", "/5"),
        conf(tmp_path / "home/.config/containers/containers.conf.d/a.conf", "/6"),
        conf(tmp_path / "home/.config/containers/containers.conf.d/b.conf", "/7"),
    ]
    for number in range(len(files), 0, -1):
        found = read(environ, tmp_path)
        assert (found.directories, found.said_by) == ((f"/{number}",), str(files[number - 1]))
        files[number - 1].unlink()


def test_a_file_that_says_nothing_of_hooks_changes_nothing(environ, tmp_path):
    conf(tmp_path / "etc/containers/containers.conf", "/1")
    own = tmp_path / "home/.config/containers/containers.conf"
    own.parent.mkdir(parents=True)
    own.write_text('[engine]\nruntime = "crun"\n')
    assert read(environ, tmp_path).directories == ("/1",)


def test_root_reads_nothing_below_a_home(environ, tmp_path):
    conf(tmp_path / "home/.config/containers/containers.conf", "/own")
    assert read(environ, tmp_path, rootless=False).directories == DEFAULT_DIRECTORIES


def test_xdg_config_home_goes_before_home(environ, tmp_path):
    conf(tmp_path / "elsewhere/containers/containers.conf", "/x")
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "elsewhere")
    assert read(environ, tmp_path).directories == ("/x",)


def test_containers_conf_takes_the_place_of_all(environ, tmp_path):
    conf(tmp_path / "home/.config/containers/containers.conf", "/own")
    environ["CONTAINERS_CONF"] = str(conf(tmp_path / "only.conf", "/only"))
    assert read(environ, tmp_path).directories == ("/only",)
    environ["CONTAINERS_CONF_OVERRIDE"] = str(conf(tmp_path / "over.conf", "/over"))
    assert read(environ, tmp_path).directories == ("/over",)


def test_append_adds_to_what_was_said_before(environ, tmp_path):
    conf(tmp_path / "etc/containers/containers.conf", "/1")
    conf(tmp_path / "home/.config/containers/containers.conf", "/2", append="{append = true}")
    assert read(environ, tmp_path).directories == ("/1", "/2")


def test_as_if_a_file_were_not_there(environ, tmp_path):
    ours = conf(tmp_path / "home/.config/containers/containers.conf.d/99.conf", "/ours")
    assert read(environ, tmp_path, without=str(ours)).directories == DEFAULT_DIRECTORIES


def test_no_toml_is_told_with_its_file(environ, tmp_path):
    path = conf(tmp_path / "etc/containers/containers.conf", "/1")
    path.write_text("hooks_dir = [")
    with pytest.raises(ConfigError, match=str(path)):
        read(environ, tmp_path)


def test_without_a_home_there_is_nothing_to_go_by(tmp_path):
    with pytest.raises(ConfigError, match="HOME"):
        read({}, tmp_path)
