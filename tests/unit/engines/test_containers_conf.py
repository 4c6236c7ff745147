"""What podman's files come to, in a tree of files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.engines import containers_conf
from netns_graft.engines.containers_conf import DEFAULT_HOOKS_DIR, Engine
from netns_graft.errors import ConfigError

HOME = {"HOME": "/home/u"}


def write(root, path, text):
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def read(root, environ=HOME, uid=1000, **more):
    return containers_conf.read(str(root), environ, uid, **more)


def test_none(tmp_path):
    engine = read(tmp_path)
    assert (engine.hooks_dirs, engine.runtime, engine.set_by) == ([DEFAULT_HOOKS_DIR], None, None)


def test_later_files_win(tmp_path):
    write(tmp_path, "/usr/share/containers/containers.conf", '[engine]\nruntime = "crun"\nhooks_dir = ["/a"]\n')
    write(tmp_path, "/etc/containers/containers.conf", '[engine]\nruntime = "runc"\n')
    write(tmp_path, "/etc/containers/containers.conf.d/20.conf", '[engine]\nhooks_dir = ["/c"]\n')
    write(tmp_path, "/etc/containers/containers.conf.d/10.conf", '[engine]\nhooks_dir = ["/b"]\n')
    write(tmp_path, "/etc/containers/containers.conf.d/90.txt", '[engine]\nhooks_dir = ["/no"]\n')
    engine = read(tmp_path)
    assert (engine.hooks_dirs, engine.runtime) == (["/c"], "runc")
    assert engine.set_by == "/etc/containers/containers.conf.d/20.conf"


def test_the_users_own_are_not_roots(tmp_path):
    write(tmp_path, "/home/u/.config/containers/containers.conf.d/x.conf", '[engine]\nhooks_dir = ["/mine"]\n')
    assert read(tmp_path).hooks_dirs == ["/mine"]
    assert read(tmp_path, uid=0).hooks_dirs == [DEFAULT_HOOKS_DIR]
    write(tmp_path, "/xdg/containers/containers.conf", '[engine]\nhooks_dir = ["/xdg"]\n')
    assert read(tmp_path, {**HOME, "XDG_CONFIG_HOME": "/xdg"}).hooks_dirs == ["/xdg"]


def test_append(tmp_path):
    write(tmp_path, "/etc/containers/containers.conf", '[engine]\nhooks_dir = ["/a", {append = true}]\n')
    write(tmp_path, "/home/u/.config/containers/containers.conf", '[engine]\nhooks_dir = ["/b"]\n')
    assert read(tmp_path).hooks_dirs == [DEFAULT_HOOKS_DIR, "/a", "/b"]


def test_environment(tmp_path):
    write(tmp_path, "/etc/containers/containers.conf", '[engine]\nhooks_dir = ["/etc"]\n')
    write(tmp_path, "/only", '[engine]\nhooks_dir = ["/o"]\n')
    write(tmp_path, "/over", '[engine]\nruntime = "runc"\n')
    engine = read(tmp_path, {**HOME, "CONTAINERS_CONF": "/only", "CONTAINERS_CONF_OVERRIDE": "/over"})
    assert (engine.hooks_dirs, engine.runtime) == (["/o"], "runc")


def test_a_fault_names_the_file(tmp_path):
    write(tmp_path, "/etc/containers/containers.conf", "[engine\n")
    engine = read(tmp_path)
    assert len(engine.faults) == 1
    assert engine.faults[0].startswith("/etc/containers/containers.conf: ")


@given(st.one_of(st.text(), st.text().map(lambda text: f"[engine]\nhooks_dir = {text}\n")))
def test_any_text_is_read_or_a_fault(text):
    engine = Engine()
    try:
        containers_conf.take(engine, "/x", text)
    except ValueError:
        pass
    assert all(isinstance(path, str) for path in engine.hooks_dirs)


def test_a_deep_one_is_a_fault():
    with pytest.raises(ValueError, match=r"."):
        containers_conf.take(Engine(), "/x", "a = " + "[" * 100_000)


def test_as_if_a_file_were_not_there(tmp_path):
    write(tmp_path, "/etc/containers/containers.conf.d/99.conf", '[engine]\nhooks_dir = ["/ours"]\n')
    assert read(tmp_path, without="/etc/containers/containers.conf.d/99.conf").set_by is None


def test_a_fault_of_this_machine_is_an_error(tmp_path):
    (tmp_path / "only.conf").write_text("[engine\n")
    with pytest.raises(ConfigError, match=r"/only\.conf: "):
        containers_conf.hooks_dirs({"CONTAINERS_CONF": str(tmp_path / "only.conf")}, 1000)
