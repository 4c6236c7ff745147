"""However the hook is kept from its work, the workload has no network at all, and the user sees why.

The one failure that must never be: a container that runs, and runs unfiltered. Each test here breaks one thing that
the graft rests on. Most keep the container from starting; where podman never learns that there is a hook, the
container runs with --network=none, which is nothing.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from lab import addresses as at
from lab.containers import HOOK, IMAGE, Done, Engine, brokers, gone, kill
from lab.identities import installed_command
from lab.matrix import one, user_and_root
from lab.server_files import PAGE
from lab.sniffer import Sniffer

ASK = f"wget -qO- http://{at.WEB}/ || echo no network"


def tried(engine: Engine, **annotations: str) -> Done:
    """A grafted container that asks for a page; whatever comes of it, no frame of it left the host."""
    with Sniffer(engine.lab) as sniffer:
        done = engine.run_grafted("--rm", IMAGE, "sh", "-c", ASK, annotations={"default": "allow", **annotations})
        assert sniffer.seen() == []
    assert PAGE.decode() not in done.stdout
    return done


def refused(engine: Engine, done: Done, why: str) -> None:
    """The container did not start, and the reason stands where the user looks: stderr, which may lead to the log, or,
    as crun drops what a hook says, the log alone.
    """
    assert done.status not in (0, 1), (done.status, done.stdout)
    assert "no network" not in done.stdout
    log = engine.log_text()
    said = log if engine.runtime == "crun" else done.stderr
    assert "netns-graft: error: the container was not started" in said
    if f"see {engine.log}" in said:
        said += log
    assert why in said, f"{why!r} not in stderr {done.stderr!r} nor log {log!r}"


def kill_brokers() -> None:
    for broker in brokers():
        kill(broker.pid)
        assert gone(broker)


class TestPodmanCannotRunIt:
    """What stands in the definition is not there, or not what it should be: podman or the runtime says so."""

    def test_the_hook_file_is_gone(self, engine: Engine) -> None:
        missing = engine.host.place / "oci_hook.py"
        words = engine.hook_words("createRuntime")
        engine.write_hooks(words=[word if word != str(HOOK) else str(missing) for word in words])
        done = tried(engine)
        assert done.status not in (0, 1)
        if engine.runtime == "runc":
            assert "oci_hook.py" in done.stderr

    def test_the_interpreter_is_gone(self, engine: Engine) -> None:
        engine.write_hooks(words=["/usr/bin/python3.1", *engine.hook_words("createRuntime")[1:]])
        # podman passes over a definition whose program does not exist, without a word: --network=none holds.
        assert tried(engine).stdout == "no network\n"

    def test_not_executable(self, engine: Engine) -> None:
        engine.write_hooks(words=[engine.host.script("hook", "#!/bin/sh\nexit 0\n", mode=0o644)])
        done = tried(engine)
        assert done.status not in (0, 1)
        assert "ermission denied" in done.stderr or engine.runtime == "crun"

    def test_a_typo_in_the_definition(self, engine: Engine) -> None:
        file = engine.hooks_dir / "netns-graft-createRuntime.json"
        file.write_text(file.read_text().replace('"hook":', '"hook";', 1))
        done = tried(engine)
        assert done.status == 126
        assert "netns-graft-createRuntime.json" in done.stderr

    def test_a_definition_without_a_path(self, engine: Engine) -> None:
        file = engine.hooks_dir / "netns-graft-createRuntime.json"
        definition = json.loads(file.read_text())
        del definition["hook"]["path"]
        file.write_text(json.dumps(definition))
        done = tried(engine)
        assert done.status == 126
        assert "missing required property: hook.path" in done.stderr

    def test_the_definition_is_gone(self, engine: Engine) -> None:
        """podman knows of no hook: then it is --network=none that holds."""
        for file in engine.hooks_dir.iterdir():
            file.unlink()
        assert tried(engine).stdout == "no network\n"

    def test_the_hooks_directory_is_gone(self, engine: Engine) -> None:
        shutil.rmtree(engine.hooks_dir)
        assert tried(engine).stdout == "no network\n"
        engine.hooks_dir.mkdir()


class TestTheHookGivesUp:
    """The hook runs, and finds that it cannot have a graft made."""

    def test_no_such_interpreter_for_the_broker(self, engine: Engine) -> None:
        kill_brokers()
        engine.write_hooks("--python", "/nonexistent/python3")
        refused(engine, tried(engine), "/nonexistent/python3")

    def test_an_interpreter_without_netns_graft(self, engine: Engine) -> None:
        kill_brokers()
        engine.write_hooks("--python", "/usr/bin/python3")
        refused(engine, tried(engine), "netns_graft")

    def test_a_broker_that_never_answers(self, engine: Engine) -> None:
        """The hook has a time limit of its own, and keeps it."""
        kill_brokers()
        sleepy = engine.host.script("sleepy", "#!/bin/sh\nexec sleep 3\n")
        engine.write_hooks("--python", sleepy, "--time-limit", "1")
        began = time.monotonic()
        done = tried(engine)
        assert time.monotonic() - began < 8
        refused(engine, done, "no answer within 1 s")

    def test_a_broker_that_is_stopped(self, engine: Engine) -> None:
        """It listens, for the kernel does that, and will never answer."""
        assert engine.run_grafted("--rm", IMAGE, "true").ok() == ""
        stopped = brokers()
        for broker in stopped:
            os.kill(broker.pid, 19)
        try:
            engine.write_hooks("--time-limit", "1")
            refused(engine, tried(engine), "no answer within 1 s")
        finally:
            for broker in stopped:
                os.kill(broker.pid, 18)
                kill(broker.pid)
                assert gone(broker)

    def test_the_runtime_directory_cannot_be_made(self, engine: Engine) -> None:
        kill_brokers()
        file = engine.host.place / "file"
        file.touch()
        engine.write_hooks("--runtime-dir", f"{file}/below")
        refused(engine, tried(engine), "file")

    @one
    def test_the_disk_is_full(self, engine: Engine) -> None:
        """A runtime directory in which nothing can be made: no socket, so no broker."""
        kill_brokers()
        full = engine.host.place / "full"
        full.mkdir()
        engine.lab.host.run("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2,mode=777", "tmpfs", str(full))
        try:
            engine.lab.host.run("sh", "-c", 'cat /dev/zero >"$0" 2>/dev/null; :', f"{full}/filler")
            engine.write_hooks("--runtime-dir", f"{full}/netns-graft")
            refused(engine, tried(engine), "No space left on device")
        finally:
            engine.lab.host.run("umount", str(full))

    @user_and_root
    def test_a_stale_socket(self, engine: Engine) -> None:
        """A broker that was killed leaves its sockets: the next hook finds nobody there and starts one."""
        assert engine.run_grafted("--rm", IMAGE, "true").ok() == ""
        kill_brokers()
        assert engine.run_grafted("--rm", IMAGE, "sh", "-c", ASK).ok() == PAGE.decode()

    @user_and_root
    def test_the_sockets_were_removed(self, engine: Engine) -> None:
        """With the broker alive and nobody able to find it: it sees that, and can be found again."""
        assert engine.run_grafted("--rm", IMAGE, "true").ok() == ""
        for socket in engine.graft_dir.glob("broker-*/*.sock"):
            socket.unlink()
        old = brokers()
        engine.write_hooks("--time-limit", "5")
        assert engine.run_grafted("--rm", IMAGE, "sh", "-c", ASK).ok() == PAGE.decode()
        assert brokers() == old

    @one
    def test_the_log_cannot_be_written(self, engine: Engine) -> None:
        """A log is no condition of the graft."""
        engine.log.mkdir()
        assert engine.run_grafted("--rm", IMAGE, "sh", "-c", ASK).ok() == PAGE.decode()


def unknown(engine: Engine) -> Done:
    return tried(engine, proxi="direct")


def bad_pattern(engine: Engine) -> Done:
    return tried(engine, allow="example.com:99999")


def bad_proxy(engine: Engine) -> Done:
    return tried(engine, proxy="gopher://127.0.0.1:70")


def bad_default(engine: Engine) -> Done:
    return tried(engine, default="maybe")


@pytest.mark.parametrize(("ask", "why"), [
    (unknown, "proxi"), (bad_pattern, "99999"), (bad_proxy, "gopher"), (bad_default, "maybe"),
])  # fmt: skip
def test_an_annotation_that_makes_no_sense(engine: Engine, ask: Callable[[Engine], Done], why: str) -> None:
    refused(engine, ask(engine), why)


@one
def test_each_is_told_its_own_reason(engine: Engine) -> None:
    """Refusals of several containers at once stand in one log; crun keeps hooks' words to itself."""
    engine.graft("run", f"--runtime={engine.runtime}", "--rm", IMAGE, "true").ok()
    proxies = [f"socks5h://nowhere-{number}.invalid:1080" for number in range(4)]
    with ExitStack() as stack:
        runs = [
            stack.enter_context(engine.started(
                installed_command(), "run", "--proxy", proxy, f"--runtime={engine.runtime}", "--rm", IMAGE, "true"
            ))
            for proxy in proxies
        ]  # fmt: skip
        for proxy, process in zip(proxies, runs, strict=True):
            _, said = process.communicate(timeout=60)
            lines = [line for line in said.decode().splitlines() if line.startswith("netns-graft: error: ")]
            assert len(lines) == 1, said
            assert proxy.split("//")[1].split(":")[0] in lines[0]


# Standing in for the hook: what a runtime does with a hook that fails in its own way.
STANDINS = {
    "fails": "echo said so >&2; exit 3",
    "killed": "kill -9 $$",
    "fails with its output closed": "exec >&- 2>&-; exit 3",
    "fails without reading its state": "exec <&-; exit 3",
}


@pytest.mark.parametrize("manner", STANDINS)
def test_a_hook_that_fails(engine: Engine, manner: str) -> None:
    """What we rest on: each runtime takes any failure of a createRuntime hook for an end of the start."""
    engine.write_hooks(words=[engine.host.script("hook", f"#!/bin/sh\n{STANDINS[manner]}\n")])
    done = tried(engine)
    assert done.status not in (0, 1)
    assert "no network" not in done.stdout


@one
def test_a_poststop_that_fails_hurts_nobody(engine: Engine) -> None:
    """The farewell is a courtesy: without it the forwarder sees by itself that its workload has gone."""
    file = engine.hooks_dir / "netns-graft-poststop.json"
    file.unlink()
    assert engine.run_grafted("--rm", IMAGE, "sh", "-c", ASK).ok() == PAGE.decode()
