"""The lab for the whole session, and the host of it as each identity sees it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.grafting import Host, command_of
from lab.internet import Lab, eventually

_number = itertools.count()


@pytest.fixture(scope="session")
def lab_session() -> Iterator[Lab]:
    if os.getuid() != 0:
        pytest.skip("the lab's namespaces and servers need root")
    lab = Lab()
    users = {identity.uid for identity in lab.identities.values()} - {0}
    before = _processes_of(users)
    yield lab
    lab.close()
    if os.environ.get("CI") == "true":
        # Whatever a process did to its environment, the mark of tests/conftest.py in it included: on a machine that
        # nobody shares with us, the users of the lab have not one process more than before, and so no namespace.
        def more() -> dict[int, list[str]]:
            return {pid: argv for pid, argv in _processes_of(users).items() if pid not in before}

        eventually(lambda: not more(), 20)
        assert more() == {}


def _processes_of(users: set[int]) -> dict[int, list[str]]:
    """Every process of these users, with its argv."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid in users:
                found[int(entry)] = command_of(int(entry))
        except OSError:
            pass
    return found


@pytest.fixture
def lab(lab_session: Lab) -> Iterator[Lab]:
    """The lab, whose host after each test has the same network links as before."""
    links, mounts = lab_session.host.links(), _pinned(lab_session)
    yield lab_session
    assert eventually(lambda: lab_session.host.links() == links), lab_session.host.links() - links
    assert [mount for mount in _pinned(lab_session) if mount not in mounts] == []


def _pinned(lab: Lab) -> list[str]:
    """Namespaces that a mount on the lab's host keeps alive."""
    with open(f"/proc/{lab.host.pid}/mountinfo") as file:
        return [line for line in file if " - nsfs " in line]


def host_as(name: str, lab: Lab, mode: str = "route") -> Host:
    return Host(lab, lab.identities[name], lab.place / f"t{next(_number)}", mode)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In mode ptrace: what is not about mode route alone, as --accept-first is, and that the host is out of reach."""
    only_route = ("accept-first", "the host's")
    if os.environ.get("NETNS_GRAFT_TEST_MODE", "route") == "route":
        return
    left_out = [
        item for item in items
        if item.get_closest_marker("route") or item.get_closest_marker("ptrace")
        or any(words in item.nodeid for words in only_route)
    ]  # fmt: skip
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def mode() -> str:
    """``exec --mode``. tests/run has the whole folder run in each; what holds in one alone is marked so."""
    return os.environ.get("NETNS_GRAFT_TEST_MODE", "route")


@pytest.fixture(params=["user", "root"])
def host(request: pytest.FixtureRequest, lab: Lab, mode: str) -> Host:
    """The host, for the unprivileged user and for root: what must work for both."""
    return host_as(request.param, lab, mode)


@pytest.fixture
def user_host(lab: Lab, mode: str) -> Host:
    """The host for the unprivileged user only: where privilege makes no difference."""
    return host_as("user", lab, mode)


@pytest.fixture
def root_host(lab: Lab, mode: str) -> Host:
    return host_as("root", lab, mode)


@pytest.fixture
def nosub_host(lab: Lab) -> Host:
    """The host for a user without subordinate ids."""
    return host_as("nosub", lab)


@pytest.fixture(scope="session")
def programs(lab_session: Lab) -> Path:
    """Where the programs of tests/e2e/programs lie for everybody to run."""
    place = lab_session.place / "programs"
    shutil.copytree(Path(__file__).parent / "programs", place)
    for file in place.iterdir():
        file.chmod(0o755)
    place.chmod(0o755)
    source = place / "fetch.go"
    subprocess.run(
        ["go", "build", "-o", str(place / "fetch-static"), str(source)],
        check=True, timeout=300, cwd=place,
        env={
            **os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "",
            "GOCACHE": str(lab_session.place / "go-cache"), "HOME": str(lab_session.place),
        },
    )  # fmt: skip
    (place / "fetch-static").chmod(0o755)
    return place
