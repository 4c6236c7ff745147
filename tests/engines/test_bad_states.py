"""What the hook is given on its standard input, cut short, huge, wrong or hostile: refused in one line.

The hook is called as a runtime would call it, inside podman's user namespace, without podman.
"""

import json
from typing import Any

import pytest
from lab.containers import Done, Engine, forwarders
from lab.internet import eventually
from lab.matrix import one

pytestmark = one

STATE: dict[str, Any] = {
    "ociVersion": "1.0.2", "id": "0" * 64, "status": "creating", "pid": 0, "bundle": "/nonexistent",
    "annotations": {"io.netns-graft.default": "allow"},
}  # fmt: skip


def short(change: object) -> str:
    return str(change)[:40]


def hook(engine: Engine, state: bytes, *more: str) -> Done:
    return engine.run("podman", "unshare", *engine.hook_words("createRuntime", *more), input=state, timeout=40)


def refused(done: Done) -> str:
    """The reason: one line, and no traceback."""
    assert done.status != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "level=warning" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("netns-graft: "), lines
    assert forwarders() == []
    return lines[0]


@pytest.mark.parametrize("state", [
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\0\0", json.dumps(STATE).encode()[:-20], b"{}" * 2, b"[" * 100_000,
    b'{"pid": 1e999}',
], ids=[
    "nothing", "cut at once", "null", "a list", "a string", "no UTF-8", "cut short", "two", "deep", "infinite",
])  # fmt: skip
def test_no_state(engine: Engine, state: bytes) -> None:
    refused(hook(engine, state))


# Calls the hook, $2 and on, with the state on its input, in which 4242424242 stands for the pid of a process that lives
# in a network namespace of its own ($1 "own") or in the host's, and tells the hook's status; the process ends with it.
ALIVE = """
[ "$1" = own ] && into="unshare --net" || into=
child=$($into sh -c 'sleep 30 >/dev/null 2>&1 & echo $!')
shift
sed "s/4242424242/$child/" | "$@"
status=$?
kill "$child"
exit $status
"""


def with_a_process(engine: Engine, change: dict[str, Any], network: str = "own") -> Done:
    """A state that is right but for ``change``."""
    bundle = engine.host.place / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text("{}")
    state = json.dumps({**STATE, "pid": 4242424242, "bundle": str(bundle), **change}).encode()
    words = engine.hook_words("createRuntime")
    return engine.run("podman", "unshare", "sh", "-c", ALIVE, "sh", network, *words, input=state, timeout=40)


@pytest.mark.parametrize("change", [
    {}, {"unknown": [1, {}]}, {"annotations": None}, {"status": "frobnicated"},
], ids=short)  # fmt: skip
def test_a_state_that_is_right(engine: Engine, change: dict[str, Any]) -> None:
    """So that the refusals below are for what they change. Keys that we do not know are the runtime's business."""
    assert with_a_process(engine, change) == Done(0, "", "")
    assert eventually(lambda: forwarders() == [])


@pytest.mark.parametrize("change", [
    {"pid": 0}, {"pid": 1}, {"pid": -1}, {"pid": "1"}, {"pid": None}, {"pid": 1 << 40}, {"pid": 2.5}, {"pid": True},
    {"pid": []}, {"id": None}, {"id": ""}, {"id": "x" * 5000}, {"id": 7},
    {"bundle": "relative"}, {"bundle": "/nonexistent"}, {"bundle": 7}, {"bundle": None},
    {"annotations": ["x"]}, {"annotations": {"io.netns-graft.default": 7}}, {"annotations": {"io.netns-graft.": "x"}},
    {"annotations": {"io.netns-graft.nope": "x"}}, {"annotations": {"io.netns-graft.allow": "["}},
    {"annotations": {"io.netns-graft.flows": "relative"}},
], ids=short)  # fmt: skip
def test_a_state_that_is_wrong(engine: Engine, change: dict[str, Any]) -> None:
    refused(with_a_process(engine, change))


@pytest.mark.parametrize("name", ["../../../../tmp/x", "a/b", "..", ".", "a\0b", "a\nb", "x" * 1000])
def test_a_name_that_is_no_file(engine: Engine, name: str) -> None:
    """Whatever a container is called, its socket lies where sockets lie."""
    done = with_a_process(engine, {"id": name})
    assert "Traceback" not in done.stderr
    assert eventually(lambda: forwarders() == [])


def test_a_huge_state(engine: Engine) -> None:
    """More than any runtime would write: refused, and neither hook nor broker takes it all in."""
    refused(hook(engine, json.dumps({**STATE, "annotations": {"a": "x" * (64 << 20)}}).encode()))


def test_the_hosts_own_namespace(engine: Engine) -> None:
    """A bundle without a network namespace: its process is in the host's, which is not for us to graft."""
    assert "the container has the host's network" in refused(with_a_process(engine, {}, network="host"))


FIGHT = """
child=$(unshare --net sh -c 'sleep 30 >/dev/null 2>&1 & echo $!')
one=$(echo "$1" | sed "s/4242424242/$child/")
two=$(echo "$2" | sed "s/4242424242/$child/")
shift 2
echo "$one" | "$@" & first=$!
echo "$two" | "$@" & second=$!
wait $first; echo $?
wait $second; echo $?
nsenter --net="/proc/$child/ns/net" ip -o link | wc -l
kill $child
"""


@pytest.mark.parametrize("alike", [True, False], ids=["one policy", "two policies"])
def test_two_hooks_fight_over_one_namespace(engine: Engine, alike: bool) -> None:
    """One of them grafts it. The other joins when it wants the same, and is refused when it does not."""
    bundle = engine.host.place / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    states = [
        json.dumps({
            **STATE, "pid": 4242424242, "bundle": str(bundle), "id": digit * 64,
            "annotations": {"io.netns-graft.default": "deny" if digit == "1" and not alike else "allow"},
        }) for digit in "01"
    ]  # fmt: skip
    done = engine.run("podman", "unshare", "sh", "-c", FIGHT, "sh", *states, *engine.hook_words("createRuntime"))
    *statuses, links = done.ok().split()
    assert sorted(statuses) == (["0", "0"] if alike else ["0", "1"]), done.stderr
    assert links == "2"
    assert eventually(lambda: forwarders() == [])


def test_wrong_arguments(engine: Engine) -> None:
    """A definition of another version's: refused, and not ignored."""
    state = json.dumps(STATE).encode()
    for more in (["--nonsense"], ["--stage", "createContainer"], ["--time-limit", "soon"], ["--set", "novalue"]):
        done = hook(engine, state, *more)
        assert done.status != 0, more
        assert "Traceback" not in done.stderr, more
