"""Image builds: each RUN is a container of its own, and has a graft of its own."""

import json

import pytest
from lab import addresses as at
from lab.containers import IMAGE, Engine, forwarders
from lab.internet import eventually
from lab.matrix import one, rootless, user_and_root
from lab.server_files import PAGE

HELLO = PAGE.decode()
FETCH = f"""\
FROM {IMAGE} AS first
RUN wget -qO /tmp/page http://example.com/
FROM {IMAGE}
COPY --from=first /tmp/page /tmp/first
RUN ["wget", "-qO", "/tmp/second", "http://{at.WEB}/"]
RUN cat /tmp/first /tmp/second && ip -o link
"""


def context(engine: Engine, containerfile: str) -> str:
    """A build context of the user's with just this Containerfile."""
    directory = engine.host.identity.own_directory(engine.host.place / "context")
    (directory / "Containerfile").write_text(containerfile)
    return str(directory)


def always(engine: Engine, *more: str) -> None:
    """In a build the hook is given no annotations: it is told everything by its own arguments."""
    engine.write_hooks(*more, when={"always": True})


@pytest.mark.parametrize("tool", ["podman", "buildah"])
def test_every_run_is_grafted(engine: Engine, tool: str) -> None:
    flows = engine.host.flows_file()
    always(engine, "--set", "default=allow", "--set", f"flows={flows}", "--group", "build-1")
    directory = context(engine, FETCH)
    done = engine.run(
        tool, f"--runtime={engine.runtime}", "build", f"--hooks-dir={engine.hooks_dir}", "--network=none",
        "--no-cache", *engine.limits, "-t", "built", directory,
    )  # fmt: skip
    assert HELLO * 2 in done.ok()
    names = [
        line.split(":")[1].split("@")[0].strip() for line in done.stdout.splitlines() if "mtu" in line and ": " in line
    ]
    assert names == ["lo", "eth0"]
    seen = [json.loads(line) for line in flows.read_text().splitlines()]
    assert [flow["destination"]["port"] for flow in seen if flow["protocol"] == "tcp"] == [80, 80]
    assert len({flow["workload"] for flow in seen}) == 2
    assert all(flow["workload"].startswith("build-1-") for flow in seen)
    engine.podman("rmi", "--force", "built").ok()


@user_and_root
def test_a_denied_run_fails_the_build(engine: Engine) -> None:
    always(engine, "--set", "default=deny", "--set", "allow=example.com:80")
    directory = context(engine, f"FROM {IMAGE}\nRUN wget -qO- http://example.com/\nRUN wget -qO- http://{at.OTHER}/\n")
    done = engine.podman("build", f"--hooks-dir={engine.hooks_dir}", "--network=none", *engine.limits, directory)
    assert done.status != 0
    assert HELLO in done.stdout
    assert at.OTHER in done.stderr


@user_and_root
def test_a_hook_that_refuses_fails_the_build(engine: Engine) -> None:
    always(engine, "--set", "proxi=direct")
    directory = context(engine, f"FROM {IMAGE}\nRUN wget -qO- http://example.com/ || true\n")
    done = engine.podman("build", f"--hooks-dir={engine.hooks_dir}", "--network=none", *engine.limits, directory)
    assert done.status != 0
    assert HELLO not in done.stdout
    assert eventually(lambda: forwarders() == [])


@rootless
def test_netns_graft_build(engine: Engine) -> None:
    """The command: options of both, several stages, the table by RUN."""
    directory = context(engine, FETCH)
    done = engine.graft(
        "build", "--default", "deny", "--allow", "example.com:80", "--allow", f"{at.WEB}:80", "--summary",
        f"--runtime={engine.runtime}", "--no-cache", "-t", "built", directory,
    )  # fmt: skip
    assert HELLO * 2 in done.ok()
    assert "RUN wget -qO /tmp/page http://example.com/" in done.stderr
    assert "example.com" in done.stderr
    engine.podman("rmi", "--force", "built").ok()


@one
def test_fail_on_deny_names_the_step(engine: Engine) -> None:
    directory = context(engine, f"FROM {IMAGE}\nRUN true\nRUN wget -qO- http://{at.OTHER}/ || true\n")
    options = ["--default", "deny", "--fail-on-deny"]
    done = engine.graft("build", *options, f"--runtime={engine.runtime}", *engine.limits, directory)
    assert done.status == 78
    assert f"RUN wget -qO- http://{at.OTHER}/ || true" in done.stderr
    engine.podman("rmi", "--all", "--force", "--filter=dangling=true")


class TestDebian:
    """Package tools that nobody told of a graft, in an image of Debian's own, against an index in the lab."""

    def test_apt(self, debian: Engine) -> None:
        text = "FROM localhost/debian\nRUN apt-get update && apt-get install -y hello && hello\n"
        done = debian.graft(
            "build", "--default", "deny", "--allow", "deb.example.org:80", "--fail-on-deny", "--summary",
            f"--runtime={debian.runtime}", "-t", "with-hello", context(debian, text), timeout=100,
        )  # fmt: skip
        assert "Hello, world!" in done.ok()
        assert "deb.example.org:80" in done.stderr
        debian.podman("rmi", "with-hello").ok()

    def test_pip(self, debian: Engine) -> None:
        flows = debian.host.flows_file()
        done = debian.graft(
            "run", "--default", "deny", "--allow", "pypi.example.org:80", "--flows", str(flows),
            f"--runtime={debian.runtime}", "--rm", "localhost/debian",
            "python3", "-m", "pip", "install", "--break-system-packages", "--no-deps", "--no-cache-dir",
            "--index-url=http://pypi.example.org/simple", "--trusted-host=pypi.example.org", "h11", timeout=100,
        )  # fmt: skip
        assert "Successfully installed h11" in done.ok()
        seen = [json.loads(line) for line in flows.read_text().splitlines()]
        assert {flow["destination"]["host"] for flow in seen} == {"pypi.example.org"}
        assert {flow["process"]["exe"] for flow in seen if flow["protocol"] == "tcp"} == {"/usr/bin/python3.11"}
