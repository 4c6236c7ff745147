"""The Containerfile: a toolbox image, built here on a Debian of our own, and a graft inside a container of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.containers import Engine, processes
from lab.internet import eventually
from lab.server_files import PAGE

TREE = Path(__file__).parents[2]
SENT = ["Containerfile", "pyproject.toml", "README.md", "LICENSE", "netns_graft", "hooks"]
# What a container must be let to make namespaces inside it, as the Containerfile says.
LET = ["--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"]


@pytest.fixture
def toolbox(debian: Engine) -> Iterator[str]:
    """The image's name. Built in a graft: it fetches from two indexes and from nowhere else."""
    context = debian.host.place / "context"
    context.mkdir()
    for name in SENT:
        source = TREE / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    debian.lab.host.run("chown", "-R", f"{debian.host.identity.uid}", str(context))
    done = debian.graft(
        "build", "--default", "deny", "--allow", "deb.example.org:80", "--allow", "pypi.example.org:80",
        "--build-arg=BASE=localhost/debian", "--build-arg=PIP_INDEX_URL=http://pypi.example.org/simple",
        "--build-arg=PIP_TRUSTED_HOST=pypi.example.org", "-t", "toolbox", str(context), timeout=300,
    )  # fmt: skip
    done.ok()
    yield "toolbox"
    debian.podman("rmi", "--force", "toolbox").ok()


@pytest.mark.timeout(400)
def test_exec_inside(debian: Engine, toolbox: str) -> None:
    """As its user, within a container that is grafted itself: two policies, one in the other."""
    version = debian.run("podman", "run", "--rm", "--network=none", toolbox, "--version")
    assert version.ok().startswith("netns-graft ")
    inside = ["exec", "--default", "deny", "--allow", "example.com:80", "--", "wget", "-qO-"]
    run = ["run", "--default", "deny", "--allow", "*.com:80", "--allow", "*.net:80", "--rm", *LET, toolbox, *inside]
    done = debian.graft(*run, "http://example.com/")
    assert done.ok() == PAGE.decode()
    denied = debian.graft(*run, "http://other.example.net/")
    assert denied.status != 0
    assert PAGE.decode() not in denied.stdout
    podman = debian.podman("run", "--rm", "--network=none", "--entrypoint=podman", toolbox, "--version")
    assert podman.ok().startswith("podman version ")
    assert eventually(lambda: not [process for process in processes() if "wget" in process.command])
