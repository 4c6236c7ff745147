"""Install and uninstall: what is written, what is kept, and that it is taken back exactly."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from netns_graft.engines import containers_conf, installation
from netns_graft.engines.hook_files import Hook, packaged_hook
from netns_graft.engines.installation import damage, install, is_installed, place_in, uninstall, users_place
from netns_graft.errors import GraftError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home")}


@pytest.fixture
def place(environ, monkeypatch):
    # The machine's own containers.conf is none of this test's business.
    monkeypatch.setattr(containers_conf, "SYSTEMS", ("/nonexistent/a", "/nonexistent/b"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root reads nothing below its home
    return users_place(environ)


@pytest.fixture
def hook(place):
    return Hook(file=place.hook_file, python="/opt/x/bin/python", runtime_dir="/run/user/1000/netns-graft")


def tree(path: str | Path) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for parent, directories, files in os.walk(path):
        found |= {os.path.join(parent, name): None for name in directories}
        found |= {os.path.join(parent, name): Path(parent, name).read_bytes() for name in files}
    return found


def whats(changes):
    return [change.what for change in changes]


def test_what_was_there_before_is_there_after(place, hook, environ):
    home = Path(environ["HOME"])
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/containers.conf").write_text("[engine]\n")
    before = tree(home)
    install(place, hook, environ)
    assert is_installed(place)
    assert set(tree(home)) > set(before)
    uninstall(place)
    assert tree(home) == before
    assert not is_installed(place)


def test_podman_is_told_of_the_hook(place, hook, environ):
    install(place, hook, environ)
    directories = tomllib.loads(Path(place.drop_in).read_text())["engine"]["hooks_dir"]
    assert directories == ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d", place.hooks_dir]
    for stage, names in (("createRuntime", r"^io\.netns-graft\..*$"), ("poststop", r"^io\.netns-graft\.flows$")):
        definition = json.loads(Path(place.hooks_dir, f"netns-graft-{stage}.json").read_text())
        assert definition["stages"] == [stage]
        assert definition["when"] == {"annotations": {names: ".*"}}
        assert definition["hook"]["args"][:3] == ["python3", "-IS", place.hook_file]
    assert Path(place.hook_file).read_bytes() == Path(packaged_hook()).read_bytes()
    assert os.access(place.hook_file, os.X_OK)


def test_directories_that_others_named_stay_named(place, hook, environ):
    own = Path(environ["HOME"], ".config/containers/containers.conf")
    own.parent.mkdir(parents=True)
    own.write_text('[engine]\nhooks_dir = ["/srv/hooks"]\n')
    install(place, hook, environ)
    assert tomllib.loads(Path(place.drop_in).read_text())["engine"]["hooks_dir"] == ["/srv/hooks", place.hooks_dir]


def test_a_second_install_changes_nothing(place, hook, environ):
    install(place, hook, environ)
    before = tree(environ["HOME"])
    assert set(whats(install(place, hook, environ))) == {"unchanged"}
    assert tree(environ["HOME"]) == before


def test_another_python_is_another_definition(place, hook, environ):
    install(place, hook, environ)
    newer = Hook(file=place.hook_file, python="/opt/y/bin/python", runtime_dir=hook.runtime_dir)
    changes = install(place, newer, environ)
    assert whats(changes) == ["unchanged", "wrote", "wrote", "unchanged"]
    assert set(whats(uninstall(place))) == {"removed"}


def test_a_file_in_the_way_is_not_touched_and_nothing_is_written(place, hook, environ):
    Path(place.drop_in).parent.mkdir(parents=True)
    Path(place.drop_in).write_text("mine\n")
    before = tree(environ["HOME"])
    with pytest.raises(GraftError, match="not ours"):
        install(place, hook, environ)
    assert tree(environ["HOME"]) == before


def test_a_file_that_was_changed_is_left_and_told(place, hook, environ):
    install(place, hook, environ)
    Path(place.drop_in).write_text("edited\n")
    assert [(change.what, change.path) for change in damage(place)] == [("changed", place.drop_in)]
    with pytest.raises(GraftError, match="changed"):
        install(place, hook, environ)
    left = [change.path for change in uninstall(place) if change.what == "left"]
    assert left == [place.drop_in, os.path.dirname(place.drop_in), os.path.dirname(os.path.dirname(place.drop_in)),
                    os.path.join(environ["HOME"], ".config")]  # fmt: skip
    assert Path(place.drop_in).read_text() == "edited\n"


def test_a_lost_file_is_told_and_written_again(place, hook, environ):
    install(place, hook, environ)
    os.unlink(place.hook_file)
    assert [change.what for change in damage(place)] == ["gone"]
    assert whats(install(place, hook, environ))[0] == "wrote"
    assert damage(place) == []


def test_an_install_that_fails_midway_can_be_taken_back(place, hook, environ):
    if os.getuid() == 0:
        Path(environ["HOME"], ".config").write_text("a file where a directory must be")
    else:
        Path(environ["HOME"], ".config").mkdir(mode=0o500)
    before = tree(environ["HOME"])
    with pytest.raises(GraftError, match="cannot write"):
        install(place, hook, environ)
    uninstall(place)
    assert tree(environ["HOME"]) == before


def test_somebody_elses_files_keep_our_directory(tmp_path):
    place = place_in(str(tmp_path / "hooks"))
    install(place, Hook(file=place.hook_file, python="/p", runtime_dir="user"), {})
    (tmp_path / "hooks" / "theirs.json").write_text("{}")
    assert uninstall(place)[-1][:2] == ("left", place.hooks_dir)
    assert [path.name for path in (tmp_path / "hooks").iterdir()] == ["theirs.json"]


def test_in_one_directory_there_is_no_drop_in_and_no_json_but_definitions(tmp_path):
    place = place_in(str(tmp_path / "hooks"))
    install(place, Hook(file=place.hook_file, python="/p", runtime_dir="user"), {})
    assert {path.name for path in (tmp_path / "hooks").glob("*.json")} == {
        "netns-graft-createRuntime.json", "netns-graft-poststop.json",
    }  # fmt: skip
    assert set(whats(uninstall(place))) == {"removed"}
    assert not (tmp_path / "hooks").exists()


def test_nothing_installed_is_nothing_to_take_back(place):
    assert uninstall(place) == []


def test_a_damaged_note_is_told(place, hook, environ):
    install(place, hook, environ)
    Path(place.note).write_text("{")
    with pytest.raises(GraftError, match="damaged"):
        uninstall(place)


def test_where_it_logs_is_known(place, environ):
    hook = Hook(file=place.hook_file, python="/p", runtime_dir="/run/x", log="/var/log/hook.log")
    assert installation.log_of(place) is None
    install(place, hook, environ)
    assert installation.log_of(place) == "/var/log/hook.log"
