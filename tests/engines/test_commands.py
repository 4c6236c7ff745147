"""`hook install`, `run`, `ps` and `flows` with real engines: what the README tells people to type."""

import json
import time
from typing import Any

from lab import addresses as at
from lab.containers import IMAGE, Engine, forwarders
from lab.internet import eventually
from lab.matrix import user_and_root
from lab.server_files import PAGE

HELLO = PAGE.decode()


def test_run(engine: Engine) -> None:
    """podman's options pass, its status is ours, and so are its descriptors."""
    words = ["run", "--proxy", "socks5h://127.0.0.1:1080", f"--runtime={engine.runtime}", *engine.limits, "--rm", "-i"]
    script = "cat; wget -qO- http://example.com/; exit 7"
    done = engine.graft(*words, "--env=A=b", IMAGE, "sh", "-c", script, input=b"said\n")
    assert (done.status, done.stdout) == (7, f"said\n{HELLO}"), done.stderr


def workloads(engine: Engine) -> list[dict[str, Any]]:
    """What `ps` says: a JSON object in each line."""
    return [json.loads(line) for line in engine.graft("ps", "--json").ok().splitlines()]


@user_and_root
def test_detached(engine: Engine) -> None:
    """`run -d`, then `ps`, `flows`, `podman logs`, `podman exec`: all know it."""
    words = ["run", "--default", "deny", "--allow", "example.com:80", f"--runtime={engine.runtime}", *engine.limits]
    script = "wget -qO- http://example.com/; sleep 60"
    container = engine.graft(*words, "-d", "--name", "detached", IMAGE, "sh", "-c", script).ok().strip()
    assert eventually(lambda: engine.podman("logs", "detached").ok() == HELLO)
    assert engine.podman("exec", "detached", "wget", "-qO-", f"http://{at.OTHER}/").status == 1
    (line,) = workloads(engine)
    assert line["name"] == container[:12]
    assert line["container_id"] == container
    assert line["container_name"] == "detached"
    assert (line["flows"]["denied"], line["flows"]["unattributed"]) == (1, 0)
    flows = [json.loads(text) for text in engine.graft("flows", "detached", "--json").ok().splitlines()]
    tcp = [flow for flow in flows if flow["protocol"] == "tcp"]
    assert [flow["verdict"] for flow in tcp] == ["allow", "deny"]
    began = time.monotonic()
    assert "detached" in engine.graft("ps").ok()
    assert time.monotonic() - began < 2
    engine.podman("rm", "--force", "--time", "0", "detached").ok()
    assert eventually(lambda: forwarders() == [])
    assert workloads(engine) == []


@user_and_root
def test_hook_install(engine: Engine) -> None:
    """Afterwards an annotation is all that podman has to be told, also for a restart; and uninstall undoes it."""
    before = sorted(path for path in engine.config_dir.rglob("*"))
    command = [f"--annotation=io.netns-graft.allow={at.WEB}:80", IMAGE, "wget", "-qO-", f"http://{at.WEB}/"]
    podman = ["podman", f"--runtime={engine.runtime}", "run", "--network=none", *engine.limits]
    system = [] if engine.rootless else ["--system"]
    engine.graft("hook", "install", *system).ok()
    try:
        engine.graft("hook", "install", *system).ok()
        engine.graft("hook", "status", *system).ok()
        assert engine.run(*podman, "--name", "again", *command).ok() == HELLO
        for _ in range(2):
            assert engine.run("podman", "start", "--attach", "again").ok() == HELLO
        engine.run("podman", "rm", "again").ok()
    finally:
        engine.graft("hook", "uninstall", *system).ok()
    assert sorted(path for path in engine.config_dir.rglob("*")) == before
    assert engine.run(*podman, "--rm", *command).status == 1  # --network=none, and nothing else


@user_and_root
def test_networks_that_are_not_ours_are_refused(engine: Engine) -> None:
    for network in ("host", "slirp4netns", "bridge"):
        done = engine.graft("run", f"--runtime={engine.runtime}", f"--network={network}", "--rm", IMAGE, "true")
        assert done.status in (2, 125), network
        assert "netns-graft: error: " in done.stderr, network
        assert "network" in done.stderr, network
