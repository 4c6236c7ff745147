"""Containers through our own commands: ``hook``, ``run`` with images and bundles, ``ps`` and ``flows``.

What a graft does for a container is in the other modules; here is what the commands add to podman, and that they add
nothing else.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from lab import addresses as at
from lab.containers import IMAGE, Done, Engine
from lab.grafting import read_line
from lab.identities import installed_command
from lab.internet import eventually
from lab.matrix import one, rootless, user_and_root
from lab.server_files import PAGE

HELLO = PAGE.decode()
ASK = ("wget", "-qO-", f"http://{at.WEB}/")
ELSEWHERE = f"wget -qO- http://{at.OTHER}/; true"


def run(engine: Engine, *ours: str, podman: tuple[str, ...] = ("--rm",), command: tuple[str, ...] = ASK) -> Done:
    return engine.graft("run", *ours, f"--runtime={engine.runtime}", *engine.limits, *podman, IMAGE, *command)


def graft_argv(*words: str) -> list[str]:
    return [installed_command(), *words]


def test_a_container_is_run(engine: Engine) -> None:
    done = run(engine, "--summary")
    assert done.ok() == HELLO
    assert f"{at.WEB}:80" in done.stderr and "1 flow, 0 denied" in done.stderr


@pytest.mark.parametrize(("command", "status"), [(("sh", "-c", "exit 7"), 7), (("/nosuch",), 127), (("/etc",), 126)])
@one
def test_its_status_is_podmans(engine: Engine, command: tuple[str, ...], status: int) -> None:
    assert run(engine, command=command).status == status


@one
def test_without_an_image_it_is_podman_that_complains(engine: Engine) -> None:
    done = engine.graft("run", "localhost/nosuch")
    assert done.status == 125
    assert "nosuch" in done.stderr


@user_and_root
def test_a_denial_is_a_status(engine: Engine) -> None:
    rules = ("--default", "deny", "--allow", at.WEB, "--fail-on-deny")
    assert run(engine, *rules).ok() == HELLO
    assert run(engine, *rules, command=("sh", "-c", ELSEWHERE)).status == 78
    assert run(engine, *rules, command=("sh", "-c", f"{ELSEWHERE}; exit 3")).status == 3


@one
def test_records_come_to_stderr_and_into_a_file(engine: Engine) -> None:
    flows = engine.host.flows_file()
    (line,) = run(engine, "--flows", "-").stderr.splitlines()
    run(engine, "--flows", str(flows)).ok()
    for record in (json.loads(line), json.loads(flows.read_text())):
        assert record["destination"]["address"] == at.WEB
        assert record["process"]["argv"] == list(ASK)


@one
def test_the_order_of_rules_is_kept(engine: Engine) -> None:
    """Annotations have no order; so they are not what this hook reads."""
    assert run(engine, "--allow", at.WEB, "--deny", ":80").ok() == HELLO
    assert run(engine, "--deny", ":80", "--allow", at.WEB).status == 1


@user_and_root
def test_a_detached_container_can_be_watched(engine: Engine) -> None:
    script = f"wget -qO- http://{at.WEB}/; sleep 600"
    container = run(engine, podman=("-d", "--name", "web"), command=("sh", "-c", script)).ok().strip()
    assert eventually(lambda: engine.podman("logs", "web").stdout == HELLO)
    assert eventually(lambda: json.loads(engine.graft("ps", "--json").ok())["flows"]["total"] == 1)
    (status,) = [json.loads(line) for line in engine.graft("ps", "--json").ok().splitlines()]
    assert (status["container_id"], status["container_name"]) == (container, "web")
    for name in ("web", container, container[:5]):
        record = json.loads(engine.graft("flows", name, "--json").ok())
        assert record["destination"]["address"] == at.WEB
    engine.podman("rm", "--force", "--time", "0", "web").ok()
    assert len(engine.graft("ps").ok().splitlines()) == 1


@one
def test_flows_are_followed_to_the_containers_end(engine: Engine) -> None:
    run(engine, podman=("-d", "--name", "web"), command=("sleep", "600")).ok()
    with engine.started(*graft_argv("flows", "web", "--follow", "--json")) as flows:
        engine.podman("exec", "web", *ASK).ok()
        assert json.loads(read_line(flows))["destination"]["address"] == at.WEB
        engine.podman("rm", "--force", "--time", "0", "web").ok()
        assert flows.wait(timeout=10) == 0


@one
def test_a_signal_to_us_is_the_containers(engine: Engine) -> None:
    script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"
    argv = graft_argv("run", f"--runtime={engine.runtime}", "--rm", IMAGE, "sh", "-c", script)
    with engine.started(*argv) as process:
        assert read_line(process) == "up"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 5


@one
def test_a_password_is_in_no_file_and_no_inspection(engine: Engine) -> None:
    proxy = "socks5h://user:s3cret@192.0.2.99:1080"
    run(engine, "--proxy", proxy, podman=("-d", "--name", "web"), command=("sleep", "60")).ok()
    inspected = engine.podman("inspect", "web").ok()
    bundle = Path(json.loads(inspected)[0]["OCIConfigPath"])
    assert "s3cret" not in inspected + bundle.read_text()
    assert list((engine.graft_dir / "launches").iterdir()) == []
    engine.podman("rm", "--force", "--time", "0", "web").ok()


@user_and_root
def test_a_hook_is_installed_proved_and_taken_back(engine: Engine) -> None:
    where = [] if engine.rootless else ["--hooks-dir", str(engine.host.place / "installed")]
    home = engine.host.identity.home
    before = sorted(home.rglob(".config/**/*"))
    assert engine.graft("hook", "status", *where).status == 1
    engine.graft("hook", "install", *where).ok()
    engine.configure(f'[engine]\nruntime = "{engine.runtime}"\n')
    proof = engine.graft("hook", "status", *where)
    assert f"ok   podman with {engine.runtime} fired it" in proof.ok()
    if engine.rootless:
        marks = ["--annotation=io.netns-graft.default=deny", f"--annotation=io.netns-graft.allow={at.WEB}"]
        assert engine.run("podman", "run", "--rm", "--network=none", *marks, IMAGE, *ASK).ok() == HELLO
        restarting = run(engine, podman=("-d", "--name", "again"), command=("sleep", "600"))
        restarting.ok()
        engine.run("podman", "restart", "--time", "0", "again").ok()
        assert engine.run("podman", "exec", "again", *ASK).ok() == HELLO
        engine.podman("rm", "--force", "--time", "0", "again").ok()
    engine.configure(None)
    engine.graft("hook", "uninstall", *where).ok()
    assert [path for path in sorted(home.rglob(".config/**/*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]
    assert engine.graft("hook", "status", *where).status == 1


@rootless
def test_a_hook_that_podman_does_not_read_is_told(engine: Engine) -> None:
    engine.graft("hook", "install").ok()
    later = engine.config_dir / "containers.conf.d" / "zz.conf"
    later.write_text('[engine]\nhooks_dir = ["/nonexistent"]\n')
    try:
        done = engine.graft("hook", "status")
        assert done.status == 1
        assert "did not fire the hook" in done.stdout
        assert str(later.name) in done.stderr
    finally:
        later.unlink()
        engine.graft("hook", "uninstall").ok()


def make_bundle(engine: Engine, image: Path) -> Path:
    """An OCI bundle as the runtime's own ``spec`` has it, with a network namespace; its command asks for a page."""
    bundle = engine.host.identity.own_directory(engine.host.place / "bundle")
    rootfs = engine.host.identity.own_directory(bundle / "rootfs")
    engine.run("tar", "-C", str(rootfs), "-xf", str(image)).ok()
    spec = ["spec", "--rootless"] if engine.rootless else ["spec"]
    engine.run("sh", "-c", 'cd "$0" && exec "$@"', str(bundle), engine.runtime, *spec).ok()
    file = bundle / "config.json"
    config = json.loads(file.read_text())
    config["process"] |= {"args": list(ASK), "terminal": False, "rlimits": []}
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [*(one for one in spaces if one["type"] != "network"), {"type": "network"}]
    file.write_text(json.dumps(config))
    return bundle


@pytest.mark.parametrize("engine", ["user-runc", "root-runc", "root-crun"], indirect=True)
def test_a_bundle_is_run(engine: Engine, image: Path) -> None:
    bundle = make_bundle(engine, image)
    before = (bundle / "config.json").read_text()
    for _ in range(2):
        done = engine.graft("run", "--summary", "--bundle", str(bundle), "--runtime", engine.runtime)
        assert done.ok() == HELLO
        assert "1 flow, 0 denied" in done.stderr
    assert (bundle / "config.json").read_text() == before
    denied = engine.graft("run", "--default=deny", f"--bundle={bundle}", f"--runtime={engine.runtime}", "its-name")
    assert denied.status == 1


@one
def test_why_a_bundle_did_not_start_is_told_where_the_runtime_does_not(engine: Engine, image: Path) -> None:
    """crun lets nobody outside its user namespace look into the container, and shows nothing that a hook says."""
    done = engine.graft("run", "--bundle", str(make_bundle(engine, image)), "--runtime", "crun")
    assert done.status == 255
    assert "netns-graft: error: the container was not started: " in done.stderr
    assert "podman unshare" in done.stderr
