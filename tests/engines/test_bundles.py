"""runc and crun without an engine: a bundle of the user's own, with our hook in it or by `netns-graft run --bundle`.

crun without root and without podman hides the container's process from everybody of the same uid until its program
runs. There the hook is called at createContainer too, inside the container's user namespace, and hands W over; a bundle
that has it at createRuntime alone is refused.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from lab import addresses as at
from lab.containers import Done, Engine, forwarders, kill, processes, read_flows_of
from lab.internet import eventually
from lab.matrix import ALL, one, rootless
from lab.server_files import PAGE

HELLO = PAGE.decode()
grafting = pytest.mark.parametrize("engine", ALL, indirect=True)


STAGES = ("createRuntime", "createContainer", "poststop")


def make_bundle(
    engine: Engine, image: Path, *args: str, network: bool = True, hooks: bool = False, stages: tuple[str, ...] = STAGES
) -> Path:  # fmt: skip
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
            for stage in stages
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
def test_rootless_crun_with_one_hook_alone_is_refused(engine: Engine, image: Path) -> None:
    script = "wget -qO- http://example.com/ || echo ran"
    bundle = make_bundle(engine, image, "sh", "-c", script, hooks=True, stages=("createRuntime", "poststop"))
    done = run(engine, bundle, "lab-bundle")
    assert (done.stdout, done.status != 0) == ("", True)
    assert "netns-graft: error: the container was not started: " in engine.log_text()
    assert "createContainer" in engine.log_text()


@rootless
def test_the_inner_hook_alone_is_refused(engine: Engine, image: Path) -> None:
    bundle = make_bundle(engine, image, "sh", "-c", "echo ran", hooks=True, stages=("createContainer",))
    done = run(engine, bundle, "lab-bundle")
    assert (done.stdout, done.status != 0) == ("", True)
    assert "nobody waits for this container's network" in engine.log_text()


@one
def test_an_inner_hook_that_does_not_come(engine: Engine, image: Path) -> None:
    """Its program is another: then nobody is grafted, and there is no network."""
    bundle = make_bundle(engine, image, "sh", "-c", f"wget -qO- http://{at.WEB}/ || echo closed", hooks=True)
    config = json.loads((bundle / "config.json").read_text())
    config["hooks"]["createContainer"][0]["path"] = "/bin/true"
    (bundle / "config.json").write_text(json.dumps(config))
    assert run(engine, bundle, "lab-bundle").stdout == "closed\n"
    assert eventually(lambda: forwarders() == [])
    assert eventually(lambda: list((engine.graft_dir / "handover").iterdir()) == [])


@one
def test_who_is_not_below_the_container_is_not_heard(engine: Engine, image: Path) -> None:
    """While the broker waits for W, somebody else comes with a namespace of his own."""
    bundle = make_bundle(engine, image, "wget", "-qO-", f"http://{at.WEB}/", hooks=True)
    config = json.loads((bundle / "config.json").read_text())
    forged = engine.host.script("forge", f"""#!/bin/sh
        cat >{bundle}/state
        setsid unshare -Un {' '.join(engine.hook_words("createContainer"))} <{bundle}/state >{bundle}/said 2>&1 &
        while ! grep -q . {bundle}/said; do sleep 0.01; done
    """)  # fmt: skip
    real = config["hooks"]["createContainer"][0]
    config["hooks"]["createRuntime"].append({"path": forged, "args": [forged]})
    config["hooks"]["createContainer"] = [real]
    (bundle / "config.json").write_text(json.dumps(config))
    assert run(engine, bundle, "lab-bundle").ok() == HELLO
    assert "the container was not started" in (bundle / "said").read_text()
    assert eventually(lambda: forwarders() == [])
