"""runc and crun without an engine: a bundle of the user's own, with our hook in it or by `netns-graft run --bundle`.

Not crun without root and without podman: there the hook runs outside of the container's user namespace, and until its
program runs crun hides the container's process from everybody of the same uid. Such a container is refused.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from lab import addresses as at
from lab.containers import Done, Engine, forwarders, kill, processes, read_flows_of
from lab.internet import eventually
from lab.matrix import one
from lab.server_files import PAGE

HELLO = PAGE.decode()
grafting = pytest.mark.parametrize("engine", ["user-runc", "root-runc", "root-crun"], indirect=True)


def make_bundle(engine: Engine, image: Path, *args: str, network: bool = True, hooks: bool = False) -> Path:
    """A bundle as ``runc spec`` writes it, with our image; rootless for the user."""
    bundle = engine.host.identity.own_directory(engine.host.place / "bundle")
    engine.run("sh", "-c", f"mkdir {bundle}/rootfs && tar -x -C {bundle}/rootfs -f {image}").ok()
    engine.run("runc", "spec", f"--bundle={bundle}", *(["--rootless"] if engine.rootless else [])).ok()
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": list(args)}
    config["process"].pop("rlimits", None)
    namespaces = [space for space in config["linux"]["namespaces"] if space["type"] != "network"]
    config["linux"]["namespaces"] = [*namespaces, *([{"type": "network"}] if network else [])]
    config["linux"].pop("resources", None)
    if hooks:
        config["hooks"] = {
            stage: [{"path": words[0], "args": words}]
            for stage in ("createRuntime", "poststop")
            for words in [engine.hook_words(stage, "--set", "default=allow")]
        }
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def run(engine: Engine, bundle: Path, name: str) -> Done:
    return engine.run(engine.runtime, "run", f"--bundle={bundle}", name)


@grafting
def test_our_hook_in_a_bundle(engine: Engine, image: Path) -> None:
    bundle = make_bundle(engine, image, "wget", "-qO-", "http://example.com/", hooks=True)
    assert run(engine, bundle, "lab-bundle").ok() == HELLO
    assert eventually(lambda: forwarders() == [])


@grafting
def test_run_bundle(engine: Engine, image: Path) -> None:
    """The command puts the hook in by itself, and the bundle stays as it was."""
    bundle = make_bundle(engine, image, "wget", "-qO-", "http://example.com/")
    before = (bundle / "config.json").read_text()
    flows = engine.host.flows_file()
    done = engine.graft(
        "run", "--default", "deny", "--allow", "example.com:80", "--flows", str(flows),
        "--bundle", str(bundle), "--runtime", engine.runtime,
    )  # fmt: skip
    assert done.ok() == HELLO
    assert (bundle / "config.json").read_text() == before
    (flow,) = read_flows_of(flows, 1)
    assert flow["destination"]["host"] == "example.com"
    assert flow["process"]["argv"][0] == "wget"


@grafting
def test_status_of_the_bundle(engine: Engine, image: Path) -> None:
    bundle = make_bundle(engine, image, "sh", "-c", "exit 7")
    assert engine.graft("run", "--bundle", str(bundle), "--runtime", engine.runtime).status == 7


@grafting
def test_without_a_network_namespace(engine: Engine, image: Path) -> None:
    """The process would be in the host's network: it does not start."""
    bundle = make_bundle(engine, image, "wget", "-qO-", f"http://{at.WEB}/", network=False, hooks=True)
    done = run(engine, bundle, "lab-bundle")
    assert done.status != 0
    assert HELLO not in done.stdout
    assert "the container has the host's network" in engine.log_text()


@grafting
@pytest.mark.parametrize("how", ["killed", "deleted"])
def test_its_end(engine: Engine, image: Path, how: str) -> None:
    """Created, started, and ended from outside, with a farewell and without."""
    bundle = make_bundle(engine, image, "sleep", "60", hooks=True)
    devnull = f">{engine.host.place}/out 2>&1 </dev/null"
    engine.run("sh", "-c", f"{engine.runtime} create --bundle={bundle} lab-bundle {devnull}").ok()
    assert len(forwarders()) == 1
    engine.run(engine.runtime, "start", "lab-bundle").ok()
    pid = json.loads(engine.run(engine.runtime, "state", "lab-bundle").ok())["pid"]
    if how == "killed":
        kill(pid)
        assert eventually(lambda: forwarders() == [])
    engine.run(engine.runtime, "delete", "--force", "lab-bundle").ok()
    assert eventually(lambda: forwarders() == [])
    assert eventually(lambda: pid not in {process.pid for process in processes()})


@one
def test_rootless_crun_is_refused(engine: Engine, image: Path) -> None:
    bundle = make_bundle(engine, image, "sh", "-c", "wget -qO- http://example.com/ || echo ran", hooks=True)
    done = run(engine, bundle, "lab-bundle")
    assert (done.stdout, done.status != 0) == ("", True)
    assert "netns-graft: error: the container was not started: " in engine.log_text()
