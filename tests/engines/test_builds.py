"""Image builds: each RUN is a container of its own, and has a graft of its own."""

import json
import time

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


def images(engine: Engine) -> set[str]:
    """Every image and layer there is."""
    return set(engine.podman("images", "--all", "--quiet", "--no-trunc").ok().split())


def working_containers(engine: Engine) -> list[str]:
    return engine.podman("ps", "--all", "--external", "--quiet").ok().split()


@user_and_root
def test_fail_on_deny_ends_the_build_there(engine: Engine) -> None:
    """Though the RUN itself would not mind, and whatever would come after it. Nothing is left of it."""
    denied = f"RUN wget -qO- http://{at.OTHER}/ || true"
    text = f"FROM {IMAGE} AS first\nRUN echo begun\n{denied}\nRUN echo went on\nFROM {IMAGE}\n" + (
        "COPY --from=first /etc/passwd /tmp/passwd\nRUN echo went on\n"
    )
    directory, before = context(engine, text), images(engine)
    build = ["build", "--default", "deny", "--fail-on-deny", f"--runtime={engine.runtime}", *engine.limits]
    done = engine.graft(*build, "-t", "never", directory)
    assert done.status == 78, done.stderr
    assert "begun\n" in done.stdout
    assert "went on\n" not in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("netns-graft: denied: "))
    assert line == f"netns-graft: denied: {at.OTHER}:80 by default, in {denied}"
    assert images(engine) == before
    assert working_containers(engine) == []
    done = engine.graft(*(word for word in build if word != "--fail-on-deny"), "-t", "b", directory)
    assert done.status == 0, "without the option it is told, and no more"
    assert "went on\n" in done.stdout
    assert line in done.stderr
    engine.podman("rmi", "--all", "--force", "--filter=dangling=true")
    engine.podman("rmi", "--force", "b").ok()


@one
def test_a_denial_after_the_runs_end_ends_the_build_too(engine: Engine) -> None:
    """The RUN has succeeded by the time its last flow is looked at: its end is held up until podman has ended."""
    text = f"FROM {IMAGE}\nRUN (wget -qO- http://{at.OTHER}/ &) ; wget -qO- http://{at.WEB}/\n"
    before = images(engine)
    build = ["build", "--deny", at.OTHER, "--fail-on-deny", f"--runtime={engine.runtime}", *engine.limits]
    done = engine.graft(*build, "-t", "never", context(engine, text))
    assert done.status == 78, done.stderr
    assert images(engine) == before
    for container in working_containers(engine):
        engine.podman("rm", "--force", container)


@one
def test_stages_that_are_built_at_once_end_together(engine: Engine) -> None:
    text = (
        f"FROM {IMAGE} AS slow\nRUN sleep 60\n"
        f"FROM {IMAGE} AS quick\nRUN sleep 1; wget -qO- http://{at.OTHER}/ || true\n"
        f"FROM {IMAGE}\nCOPY --from=slow /etc/passwd /tmp/one\nCOPY --from=quick /etc/passwd /tmp/two\n"
    )
    build = ["build", "--default", "deny", "--fail-on-deny", f"--runtime={engine.runtime}", *engine.limits, "--jobs=4"]
    began = time.monotonic()
    done = engine.graft(*build, "-t", "never", context(engine, text))
    assert done.status == 78, done.stderr
    assert time.monotonic() - began < 40
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
