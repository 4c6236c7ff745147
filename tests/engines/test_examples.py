"""The folders of examples/: those that can run here are run as their READMEs say; of the others the files are read."""

import configparser
import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab.containers import IMAGE, Engine
from lab.grafting import Host
from lab.identities import installed_command
from lab.matrix import one
from lab.server_files import PAGE

from netns_graft.options import named_options

EXAMPLES = Path(__file__).parents[2] / "examples"
HELLO = PAGE.decode()
PREFIX = "io.netns-graft."


def options_of(annotations: dict[str, str]) -> None:
    """Fails unless each annotation of ours is a graft option with a value that makes sense."""
    ours = [(key.removeprefix(PREFIX), value) for key, value in annotations.items() if key.startswith(PREFIX)]
    assert ours
    named_options([(name, word) for name, value in ours for word in value.split()])


def example(host: Host, name: str) -> str:
    """A copy of the folder in the user's place."""
    directory = host.place / name
    shutil.copytree(EXAMPLES / name, directory)
    for path in (directory, *directory.iterdir()):
        os.chown(path, host.identity.uid, host.identity.gid)
    return str(directory)


def on_path() -> dict[str, str]:
    return {"PATH": f"{Path(installed_command()).parent}:{os.environ['PATH']}"}


@pytest.fixture
def installed(engine: Engine) -> Iterator[Engine]:
    """After `netns-graft hook install`, with podman told of nothing else."""
    for file in engine.hooks_dir.iterdir():
        file.unlink()
    engine.graft("hook", "install").ok()
    yield engine
    engine.graft("hook", "uninstall").ok()


@one
def test_corporate_proxy(engine: Engine) -> None:
    done = engine.run(f"{example(engine.host, 'corporate-proxy')}/run", env={**on_path(), "IMAGE": IMAGE})
    assert done.ok() == HELLO


def node_of_this_machine(host: Host) -> list[str]:
    """podman build's options that lay node and npm into the Debian image, which has neither."""
    node, npm = (os.path.realpath(shutil.which(name) or name) for name in ("node", "npm"))
    modules = str(Path(npm).parents[2])
    wrapper = host.script("npm", f'#!/bin/sh\nexec node {npm} "$@"\n')
    laid = {node: "/usr/bin/node", modules: modules, wrapper: "/usr/bin/npm"}
    return [f"--volume={here}:{there}:ro" for here, there in laid.items()]


@pytest.mark.parametrize(("kind", "arguments", "allowed", "said"), [
    ("apt", [], "deb.example.org:80", "Hello, world!"),
    ("pip", [
        "--build-arg=INDEX=http://pypi.example.org/simple", "--build-arg=PIP_TRUSTED_HOST=pypi.example.org",
    ], "pypi.example.org:80", "Successfully installed h11"),
    ("npm", ["--build-arg=REGISTRY=http://npm.example.org/"], "npm.example.org:80", "added 1 package"),
])  # fmt: skip
def test_allow_list_build(debian: Engine, kind: str, arguments: list[str], allowed: str, said: str) -> None:
    directory = example(debian.host, "allow-list-build")
    if kind == "npm":
        arguments = [*arguments, *node_of_this_machine(debian.host)]
    command = [f"{directory}/build", kind, "--build-arg=BASE=localhost/debian", *arguments]
    done = debian.run(*command, env={**on_path(), "ALLOW": allowed}, timeout=100)
    assert said in done.ok()
    denied = debian.run(*command, env={**on_path(), "ALLOW": "elsewhere.example:80"}, timeout=100)
    assert denied.status != 0
    assert said not in denied.stdout
    assert "denied" in denied.stderr
    debian.podman("rmi", "--force", f"allow-list-{kind}").ok()


@one
def test_every_container(installed: Engine) -> None:
    text = (EXAMPLES / "every-container" / "containers.conf").read_text()
    options_of(dict(item.split("=", 1) for item in tomllib.loads(text)["containers"]["annotations"]))
    installed.configure(text)
    try:
        done = installed.run("podman", "run", "--rm", IMAGE, "wget", "-qO-", "http://example.com/")
        assert done.ok() == HELLO
        words = ["podman", "run", "--rm", f"--annotation={PREFIX}default=deny", IMAGE]
        assert installed.run(*words, "wget", "-qO-", "http://example.com/").status == 1
    finally:
        installed.configure(None)


@one
def test_podman_compose(installed: Engine) -> None:
    directory = example(installed.host, "podman-compose")
    compose = str(Path(installed_command()).parent / "podman-compose")
    env = {**on_path(), "IMAGE": IMAGE}
    done = installed.run("env", "-C", directory, compose, "up", env=env)
    try:
        said = done.stdout + done.stderr
        lines = {name: [line for line in said.splitlines() if f"[{name}]" in line] for name in ("reader", "prisoner")}
        assert any(HELLO.strip() in line for line in lines["reader"]), said
        assert any("bad address" in line for line in lines["prisoner"]), said
        options = yaml.safe_load(Path(directory, "compose.yaml").read_text())["services"]
        assert set(options) == {"reader", "prisoner"}
    finally:
        installed.run("env", "-C", directory, compose, "down", "--timeout", "0", env=env).ok()


def test_quadlet() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    lines = (EXAMPLES / "quadlet" / "news.container").read_text().splitlines()
    unit.read_string("\n".join(line for line in lines if not line.startswith("Annotation=")))
    assert unit["Container"]["Network"] == "none"
    annotations = [line.removeprefix("Annotation=") for line in lines if line.startswith("Annotation=")]
    options_of(dict(item.split("=", 1) for item in annotations))


def test_cri_o() -> None:
    runtime = tomllib.loads((EXAMPLES / "cri-o" / "10-netns-graft.conf").read_text())["crio"]["runtime"]
    assert runtime["runtimes"]["netns-graft"]["allowed_annotations"] == [PREFIX]
    plugins = json.loads((EXAMPLES / "cri-o" / "20-loopback-only.conflist").read_text())["plugins"]
    assert plugins == [{"type": "loopback"}]
    kind, pod = yaml.safe_load_all((EXAMPLES / "cri-o" / "pod.yaml").read_text())
    assert pod["spec"]["runtimeClassName"] == kind["metadata"]["name"]
    assert kind["handler"] in runtime["runtimes"]
    options_of(pod["metadata"]["annotations"])


def test_each_has_a_readme_and_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for folder in EXAMPLES.iterdir():
        if folder.is_dir():
            assert (folder / "README.md").exists(), folder
            assert f"[{folder.name}]({folder.name})" in listed, folder
