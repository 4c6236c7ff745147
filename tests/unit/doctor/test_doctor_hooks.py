"""Where podman would read hooks, and whether ours would fire: in a tree of files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.doctor import hooks
from netns_graft.doctor.engines import Program
from netns_graft.doctor.finding import Status
from netns_graft.engines import containers_conf
from netns_graft.engines.containers_conf import Engine

HOME = {"HOME": "/home/u"}
PODMAN = {name: Program(name, f"/usr/bin/{name}", "4.3.1") for name in ("podman", "runc")}


def write(root, path, text, mode=0o644):
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def read(root, environ=HOME, uid=1000):
    return containers_conf.read(str(root), environ, uid)


class TestDirectories:
    def test_a_fault_names_the_file(self, tmp_path):
        write(tmp_path, "/etc/containers/containers.conf", "[engine\n")
        engine = read(tmp_path)
        assert len(engine.faults) == 1
        assert engine.faults[0].startswith("/etc/containers/containers.conf: ")
        finding = hooks.directories(str(tmp_path), engine)
        assert (finding.status, finding.evidence) == (Status.WARNING, tuple(engine.faults))


GOOD = {
    "version": "1.0.0",
    "hook": {"path": "/usr/bin/python3", "args": ["python3", "-IS", "/opt/ng/oci_hook.py"]},
    "when": {"annotations": {r"^io\.netns-graft\..*$": ".*"}},
    "stages": ["createRuntime", "poststop"],
}


@pytest.fixture
def tree(tmp_path):
    write(tmp_path, "/usr/bin/python3", "", 0o755)
    write(tmp_path, "/opt/ng/oci_hook.py", "")
    return tmp_path


def put(tree, definition, path="/hooks/graft.json"):
    write(tree, path, definition if isinstance(definition, str) else json.dumps(definition))
    return hooks.installed(str(tree), HOME, Engine(["/absent", "/hooks"]), PODMAN)


def test_it_will_fire(tree):
    finding = put(tree, GOOD)
    assert (finding.status, finding.detail) == (Status.OK, "/hooks/graft.json will be fired by podman")
    assert put(tree, {**GOOD, "when": {"always": True}}).status is Status.OK


def test_somebody_elses_hooks_are_not_ours(tree):
    finding = put(tree, {"version": "1.0.0", "hook": {"path": "/bin/true"}})
    assert (finding.status, finding.detail.split(":")[0]) == (Status.OK, "not installed")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "2"}, 'its version is not "1.0.0"'),
        ({"stages": ["poststop"]}, "its stages lack createRuntime"),
        ({"stages": None}, "its stages lack createRuntime"),
        ({"hook": {"path": "python3", "args": ["/opt/ng/oci_hook.py"]}}, "its path is not absolute: python3"),
        (
            {"hook": {"path": "/usr/bin/pypy", "args": ["/opt/ng/oci_hook.py"]}},
            "its program cannot be run: /usr/bin/pypy: no such file or directory",
        ),
        (
            {"hook": {"path": "/usr/bin/python3", "args": ["/gone/oci_hook.py"]}},
            "the hook cannot be read: /gone/oci_hook.py: no such file or directory",
        ),
        (
            {"hook": {"path": "/usr/bin/python3", "args": ["x"], "env": ["A=oci_hook.py"]}},
            "it does not run oci_hook.py",
        ),
        ({"hook": 5, "note": "oci_hook.py"}, "it names no program to run"),
        ({"when": {"annotations": {"^org\\.other": ".*"}}}, "no annotation of netns-graft triggers it"),
        ({"when": {"annotations": {"^io(": ".*"}}}, "its annotation is no regular expression: ^io("),
        ({"when": {}}, "no annotation of netns-graft triggers it"),
        ({"when": None}, "it does not say when"),
    ],
)
def test_why_it_would_not(tree, change, fault):
    finding = put(tree, {**GOOD, **change})
    assert (finding.status, finding.evidence) == (Status.WARNING, (fault,))


def test_a_typo(tree):
    finding = put(tree, json.dumps(GOOD)[:-1])
    assert finding.status is Status.WARNING
    assert finding.evidence[0].startswith("it is no JSON: ")


def test_a_definition_for_each_stage(tree):
    put(tree, {**GOOD, "stages": ["poststop"]}, "/hooks/graft-poststop.json")
    assert put(tree, {**GOOD, "stages": ["createRuntime"]}).status is Status.OK
    finding = put(tree, {**GOOD, "stages": ["createRuntime"], "version": "2"})
    assert (finding.detail.split()[0], finding.evidence) == ("/hooks/graft.json", ('its version is not "1.0.0"',))
    finding = put(tree, "{}")
    assert finding.detail.split()[0] == "/hooks/graft-poststop.json"
    assert finding.evidence == ("its stages lack createRuntime",)


def test_of_two_with_one_name_the_later_directorys_counts(tree):
    write(tree, "/absent/graft.json", json.dumps(GOOD))  # read first
    assert put(tree, {**GOOD, "version": "2"}).status is Status.WARNING
    assert put(tree, {"hook": "somebody else's"}).detail.startswith("not installed")
    assert put(tree, GOOD).detail.startswith("/hooks/graft.json")


def test_a_directory_that_nobody_reads(tree):
    write(tree, "/etc/containers/oci/hooks.d/graft.json", json.dumps(GOOD))
    finding = hooks.installed(str(tree), HOME, Engine(["/hooks"]), PODMAN)
    assert finding.status is Status.WARNING
    assert finding.cure == (
        'hooks_dir = ["/etc/containers/oci/hooks.d"] under [engine] in /home/u/.config/containers/containers.conf'
    )


def test_directories(tree):
    (tree / "hooks").mkdir()
    finding = hooks.directories(str(tree), Engine(["/hooks", "/absent"], set_by="/c"))
    assert finding.detail == "/hooks, /absent (not there) (by /c)"
    assert hooks.directories(str(tree), Engine([], set_by="/c")).status is Status.WARNING


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("/x/oci_hook.py"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*GOOD, "path", "args", "annotations", "always", "("]), inner, max_size=5),
    max_leaves=12,
)


@given(st.one_of(st.text(), JSON.map(json.dumps), JSON.map(lambda one: json.dumps({**GOOD, "hook": one, "when": one}))))
def test_any_definition_is_judged(text):
    assert all(isinstance(fault, str) for fault in hooks.faults("/nowhere", text))


def test_a_deep_definition_is_judged():
    assert hooks.faults("/nowhere", "[" * 100_000)
