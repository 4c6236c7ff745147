"""Unchanged programs of every make: dynamic and static, with the C library's resolver and with their own."""

import shutil
import sys
from pathlib import Path

import pytest
from lab import addresses as at
from lab.grafting import Host
from lab.server_files import PAGE

UPSTREAMS = {
    "direct": "direct",
    "socks5h": f"socks5h://{at.PROXY}:{at.SOCKS}",
    "http": f"http://{at.PROXY}:{at.TINYPROXY}",
}


@pytest.fixture(params=UPSTREAMS)
def upstream(request: pytest.FixtureRequest) -> str:
    return UPSTREAMS[request.param]


@pytest.mark.parametrize("url", ["http://example.com/", f"http://{at.WEB}/"], ids=["name", "address"])
@pytest.mark.parametrize("program", ["curl", "wget", "busybox", "go", "python", "node"])
def test_fetch(host: Host, programs: Path, upstream: str, program: str, url: str) -> None:
    command = {
        "curl": ["curl", "-sS", url],
        "wget": ["wget", "-q", "-O", "-", url],
        "busybox": ["busybox", "wget", "-q", "-O", "-", url],
        "go": [str(programs / "fetch-static"), url],
        "python": ["/usr/bin/python3", str(programs / "fetch_asyncio.py"), url],
        "node": ["node", str(programs / "fetch.js"), url],
    }[program]
    done = host.graft(["--proxy", upstream], *command)
    assert (done.status, done.stdout) == (0, PAGE), done.stderr
    flow = next(flow for flow in done.tcp() if flow["outcome"] == "ok")
    executable = shutil.which(command[0])
    assert executable is not None
    assert flow["process"]["exe"] == str(Path(executable).resolve())
    assert flow["process"]["argv"] == command
    assert flow["upstream"] == upstream
    if "example.com" in url:
        assert flow["destination"]["host"] == "example.com"


def test_the_static_programs_are_static(programs: Path, user_host: Host) -> None:
    for path in ("/usr/bin/busybox", str(programs / "fetch-static")):
        assert b"not a dynamic executable" in (done := user_host.run("ldd", path)).stdout + done.stderr


def test_git_clone(host: Host, upstream: str) -> None:
    done = host.graft(
        ["--proxy", upstream], "git", "clone", "-q", "http://example.com/repository.git", "clone"
    )
    assert done.status == 0, done.stderr
    assert (host.place / "clone" / "README").read_text() == "cloned\n"
    assert (host.place / "clone" / "blob").read_bytes() == (host.lab.place / "work" / "blob").read_bytes()
    flows = [flow for flow in done.tcp() if flow["outcome"] == "ok"]
    assert flows
    # git's helper speaks, and git is its parent.
    assert {Path(flow["process"]["exe"]).name for flow in flows} == {"git-remote-http"}
    assert any(parent["exe"] == "/usr/bin/git" for parent in flows[0]["process"]["parents"])


def test_python_of_the_venv(host: Host, programs: Path) -> None:
    """An interpreter behind a symbolic link: the record names the file that runs."""
    done = host.graft([], sys.executable, str(programs / "fetch_asyncio.py"), f"http://{at.WEB}/")
    assert done.stdout == PAGE
    assert done.one_tcp()["process"]["exe"] == str(Path(sys.executable).resolve())
