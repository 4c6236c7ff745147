"""Names in containers: podman's options about them are honoured, though podman itself refuses some in a graft."""

import time

import pytest
from lab import addresses as at
from lab.containers import IMAGE, Engine, read_flows_of
from lab.matrix import one, rootless, user_and_root
from lab.server_files import PAGE

HELLO = PAGE.decode()
OTHER_SERVER = "8.8.8.8"  # answers as the host's own does
OPTIONS = [f"--dns={OTHER_SERVER}", "--dns-search", "lab.example", "--dns-option=ndots:2", "--dns-opt", "timeout:3"]
ASK = "cat /etc/resolv.conf; wget -qO- http://server/"


def asked_since(engine: Engine, began: float) -> tuple[bool, bool]:
    """Was the other server asked, was the host's?"""
    return bool(engine.lab.questions(began, OTHER_SERVER)), bool(engine.lab.questions(began, at.DNS))


@user_and_root
def test_dns_of_podmans(engine: Engine) -> None:
    """The file is what podman writes where it is allowed to; whom it names is asked, and nobody else."""
    cat = [IMAGE, "cat", "/etc/resolv.conf"]
    as_podman = engine.podman("run", "--rm", "--network=host", *engine.limits, *OPTIONS, *cat)
    began = time.time()
    run = ["run", f"--runtime={engine.runtime}", *engine.limits, "--rm", *OPTIONS, IMAGE, "sh", "-c", ASK]
    done = engine.graft(*run)
    assert done.ok() == as_podman.ok() + HELLO
    assert asked_since(engine, began) == (True, False)


@one
@pytest.mark.parametrize("option", [f"--dns={OTHER_SERVER}", "--dns-search=.", "--dns-opt=ndots:3"])
def test_what_is_not_said_is_the_hosts(engine: Engine, option: str) -> None:
    cat = [IMAGE, "cat", "/etc/resolv.conf"]
    as_podman = engine.podman("run", "--rm", "--network=host", option, *cat).ok()
    assert engine.graft("run", f"--runtime={engine.runtime}", "--rm", option, *cat).ok() == as_podman


@one
def test_dns_with_an_address_may_stand_first(engine: Engine) -> None:
    began = time.time()
    done = engine.graft(
        "run", "--dns", OTHER_SERVER, f"--runtime={engine.runtime}", "--rm", IMAGE, "wget", "-qO-", "http://example.com/"
    )
    assert done.ok() == HELLO
    assert asked_since(engine, began) == (True, False)


@one
def test_with_synthetic_names_nobody_is_asked_by_the_container(engine: Engine) -> None:
    began = time.time()
    rules = ["--default", "deny", "--allow", "server.lab.example:80"]
    done = engine.graft("run", *rules, f"--runtime={engine.runtime}", "--rm", *OPTIONS, IMAGE, "sh", "-c", ASK)
    assert done.ok().endswith(HELLO)
    assert not asked_since(engine, began)[0]


@rootless
@pytest.mark.parametrize("userns", ["keep-id", "auto"])
def test_dns_for_other_users(engine: Engine, userns: str) -> None:
    run = ["run", f"--runtime={engine.runtime}", "--rm", f"--userns={userns}", *OPTIONS, IMAGE, "sh", "-c", ASK]
    assert engine.graft(*run).ok().endswith(HELLO)


@one
def test_a_container_that_is_started_again_finds_its_file(engine: Engine) -> None:
    run = ["run", f"--runtime={engine.runtime}", "--name", "again", *OPTIONS, IMAGE, "cat", "/etc/resolv.conf"]
    text = engine.graft(*run).ok()
    assert engine.podman("start", "--attach", "again").ok() == text
    assert "nameserver" in engine.podman("inspect", "--format={{.Config.Annotations}}", "again").ok()
    engine.podman("rm", "again").ok()


@one
def test_an_annotation_names_servers_too(engine: Engine) -> None:
    began = time.time()
    ask = ["--rm", IMAGE, "wget", "-qO-", "http://example.com/"]
    done = engine.run_grafted(*ask, annotations={"nameserver": OTHER_SERVER})
    assert done.ok() == HELLO
    assert asked_since(engine, began) == (True, False)
    done = engine.run_grafted("--rm", IMAGE, "true", annotations={"nameserver": "127.0.0.1"})
    assert done.status != 0
    assert "nameserver: '127.0.0.1' is the container's own" in engine.log_text()


@rootless
def test_dns_of_a_build(engine: Engine) -> None:
    context = engine.host.identity.own_directory(engine.host.place / "context")
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nRUN {ASK}\n")
    began = time.time()
    done = engine.graft("build", f"--runtime={engine.runtime}", "--no-cache", "-t", "asked", *OPTIONS, str(context))
    assert HELLO in done.ok()
    assert f"search lab.example\nnameserver {OTHER_SERVER}\noptions ndots:2 timeout:3\n" in done.stdout
    assert asked_since(engine, began) == (True, False)
    engine.podman("rmi", "--force", "asked").ok()


@user_and_root
@pytest.mark.parametrize("mode", ["synthetic", "forward"])
def test_hosts_of_podmans(engine: Engine, mode: str) -> None:
    """A name of --add-host is its address: found in either mode, and judged as the address that it is."""
    flows = engine.host.flows_file()
    names = ["--add-host", f"allowed.example:{at.WEB}", "--add-host", f"denied.example:{at.OTHER}"]
    script = "wget -qO- http://allowed.example/; wget -qO- http://denied.example/ || echo refused"
    done = engine.graft(
        "run", "--dns", mode, "--default", "deny", "--allow", f"{at.WEB}:80", "--flows", str(flows),
        f"--runtime={engine.runtime}", *engine.limits, "--rm", *names, IMAGE, "sh", "-c", script,
    )  # fmt: skip
    assert done.ok() == HELLO + "refused\n"
    seen = read_flows_of(flows, 2)
    assert [(flow["destination"]["address"], flow["verdict"]) for flow in seen] == [
        (at.WEB, "allow"), (at.OTHER, "deny"),
    ]  # fmt: skip
