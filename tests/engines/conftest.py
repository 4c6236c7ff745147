"""The lab with container engines in it: as the unprivileged user and as root, podman with runc and with crun.

After each test nothing of a container's life is left: no process, no status socket, no container, no link. Needs a
PID namespace of its own whose first process reaps orphans; tests/run makes it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import containers
from lab.containers import Engine, lasting, processes
from lab.grafting import Host
from lab.internet import Lab, eventually
from lab.matrix import ALL

_number = itertools.count()
ENGINE = pytest.StashKey[Engine]()
SOURCE = Path(__file__).parents[1] / "e2e" / "programs" / "fetch.go"


@pytest.fixture(scope="session")
def lab_session() -> Iterator[Lab]:
    if os.getuid() != 0:
        pytest.skip("the lab's namespaces and servers need root")
    if Path("/proc/1/comm").read_text() != "catatonit\n":
        pytest.fail(
            "these tests want a PID namespace of their own: "
            "unshare --pid --fork --kill-child --mount-proc catatonit -- pytest tests/engines",
            pytrace=False,
        )
    lab = Lab()
    try:
        containers.prepare_host(lab)
        yield lab
    finally:
        for process in processes():
            if lasting(process):
                containers.kill(process.pid)
        lab.close()


@pytest.fixture(scope="session")
def fetch_static(lab_session: Lab) -> Path:
    """A static Go program that fetches a URL, with a resolver of its own."""
    program = lab_session.place / "fetch"
    subprocess.run(
        ["go", "build", "-o", str(program), str(SOURCE)], check=True, timeout=300, cwd=lab_session.place,
        env={
            **os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "",
            "GOCACHE": str(lab_session.place / "go-cache"), "HOME": str(lab_session.place),
        },
    )  # fmt: skip
    return program


@pytest.fixture(scope="session")
def image(lab_session: Lab, fetch_static: Path) -> Path:
    """The tar of our image: busybox and ``fetch``."""
    path = lab_session.place / "image.tar"
    containers.make_image(path, fetch_static)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def prepared(lab_session: Lab, image: Path) -> Callable[[str], None]:
    """Gives an identity's podman the image, and the broker its first start, once."""
    done: set[str] = set()

    def prepare(name: str) -> None:
        if name in done:
            return
        done.add(name)
        engine = make_engine(lab_session, name, "runc")
        if engine.rootless:
            _layers(engine)
        engine.podman("import", "--quiet", str(image), containers.IMAGE).ok()

    return prepare


def _layers(engine: Engine) -> None:
    """Where rootless podman can share layers, let it: by itself it copies a whole image for each container."""
    if engine.run("podman", "info", env={"STORAGE_DRIVER": "overlay"}).status != 0:
        return
    home = engine.host.identity.home
    shutil.rmtree(home / ".local/share/containers", ignore_errors=True)
    engine.write_config("storage.conf", '[storage]\ndriver = "overlay"\n')


def make_engine(lab: Lab, name: str, runtime: str) -> Engine:
    return Engine(Host(lab, lab.identities[name], lab.place / f"t{next(_number)}"), runtime)


@pytest.fixture(params=ALL)
def engine(request: pytest.FixtureRequest, lab_session: Lab, prepared: Callable[[str], None]) -> Engine:
    """Podman, rootless and rootful, with each runtime: what must work for all four. The hook is installed."""
    name, _, runtime = request.param.partition("-")
    prepared(name)
    engine = make_engine(lab_session, name, runtime)
    engine.write_hooks()
    request.node.stash[ENGINE] = engine
    return engine




@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Instead of the rule of the other tests, which knows our processes by a mark: here all are ours."""
    request.getfixturevalue("lab_session")
    before, links, mounts = processes(), lab_links(request), nsfs_mounts()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    faults = []

    def left() -> list[str]:
        return [str(process) for process in processes() - before if not lasting(process)]

    if not eventually(lambda: not left(), 8):
        faults += left()
    engine = request.node.stash.get(ENGINE, None)
    if engine is not None:
        if not eventually(lambda: not engine.workloads(), 3):
            faults.append(f"status sockets {engine.workloads()}")
        if containers_left := engine.containers():
            faults.append(f"containers {containers_left}")
            engine.podman("rm", "--all", "--force", "--time", "0")
    if lab_links(request) != links:
        faults.append(f"links {lab_links(request) - links}")
    if set(nsfs_mounts()) - set(mounts):
        faults.append("a namespace was pinned by a mount")
    if (now := len(os.listdir("/proc/self/fd"))) > descriptors:
        faults.append(f"{now - descriptors} descriptors of the test's own")
    for process in processes() - before:
        if not lasting(process):
            containers.kill(process.pid)
    if faults:
        pytest.fail("left behind:\n  " + "\n  ".join(faults), pytrace=False)


def lab_links(request: pytest.FixtureRequest) -> set[str]:
    lab: Lab = request.getfixturevalue("lab_session")
    return lab.host.links()


def nsfs_mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if " - nsfs " in line]


# Debian: what tests/engines/make-debian has made beside the environment that runs the tests.


@pytest.fixture(scope="session")
def made() -> Path:
    """Where tests/prepare left a Debian and wheels."""
    place = Path(sys.prefix).parent
    if not (place / "debian.tar").exists():
        pytest.fail(f"no {place}/debian.tar: tests/engines/make-debian makes it", pytrace=False)
    return place


@pytest.fixture(scope="session")
def packages(lab_session: Lab, made: Path) -> None:
    """deb.example.org/apt and pypi.example.org/simple, as plain files on the lab's web server."""
    www = lab_session.place / "www"
    (www / "apt").symlink_to(made / "apt")
    simple = www / "simple"
    simple.mkdir()
    (simple / "files").symlink_to(made / "wheels")
    for wheel in (made / "wheels").glob("*.whl"):
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        (simple / name).mkdir(exist_ok=True)
        with open(simple / name / "index.html", "a") as file:
            file.write(f'<a href="../files/{wheel.name}">{wheel.name}</a>\n')
    put_npm_package(www, "left-pad", "1.3.0")


def put_npm_package(www: Path, name: str, version: str) -> None:
    """npm.example.org/NAME: what a registry says of a package, and the package."""
    described = {"name": name, "version": version, "main": "index.js"}
    with tarfile.open(www / f"{name}.tgz", "w:gz") as archive:
        for file, text in (("package.json", json.dumps(described)), ("index.js", "module.exports = 1;\n")):
            info = tarfile.TarInfo(f"package/{file}")
            info.size, info.mode = len(text), 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha512((www / f"{name}.tgz").read_bytes()).digest()
    place = {
        "tarball": f"http://npm.example.org/{name}.tgz",
        "integrity": "sha512-" + base64.b64encode(digest).decode(),
    }
    versions = {version: {**described, "dist": place}}
    said = {"name": name, "dist-tags": {"latest": version}, "versions": versions}
    (www / name).write_text(json.dumps(said))


@pytest.fixture
def debian(
    request: pytest.FixtureRequest, lab_session: Lab, prepared: Callable[[str], None], packages: None, made: Path
) -> Engine:
    """The unprivileged user's podman with ``localhost/debian``."""
    prepared("user")
    engine = make_engine(lab_session, "user", "crun")
    request.node.stash[ENGINE] = engine
    if engine.podman("image", "exists", "localhost/debian").status != 0:
        engine.podman("import", "--quiet", str(made / "debian.tar"), "localhost/debian").ok()
    return engine
