"""A container's life: started, stopped, restarted, killed from any side. What is over leaves nothing.

conftest.py counts after each test: processes, status sockets, containers, links, descriptors.
"""

from lab import addresses as at
from lab.containers import IMAGE, Engine, brokers, forwarders, gone, in_namespace, kill, read_flows_of
from lab.grafting import namespace_of, read_line
from lab.internet import eventually
from lab.matrix import one, user_and_root
from lab.server_files import PAGE

HELLO = PAGE.decode()
ASK = ("wget", "-qO-", f"http://{at.WEB}/")


def start(engine: Engine, *options: str, **annotations: str) -> str:
    """A container that sleeps; its id."""
    marks = {"default": "allow", **annotations}
    return engine.run_grafted("--detach", *options, IMAGE, "sleep", "600", annotations=marks).ok().strip()


def remove(engine: Engine, *names: str) -> None:
    engine.podman("rm", "--force", "--time", "0", *names).ok()


def test_stop_and_start(engine: Engine) -> None:
    """Each life has a graft of its own, named alike; between them there is none."""
    flows = engine.host.flows_file()
    container = start(engine, flows=str(flows))
    for life in range(1, 4):
        assert engine.podman("exec", container, *ASK).ok() == HELLO, life
        assert engine.workloads() == [container[:12]]
        engine.podman("stop", "--time", "0", container).ok()
        assert eventually(lambda: engine.workloads() == []), life
        assert forwarders() == []
        if life < 3:
            engine.podman("start", container).ok()
    remove(engine, container)
    assert len(read_flows_of(flows, 3)) == 3


def test_restart(engine: Engine) -> None:
    container = start(engine)
    for _ in range(3):
        engine.podman("restart", "--time", "0", container).ok()
        assert engine.podman("exec", container, *ASK).ok() == HELLO
        assert len(forwarders()) == 1
    remove(engine, container)


@user_and_root
def test_restart_policy(engine: Engine) -> None:
    """podman itself starts it again, three times; each run is grafted anew.

    Until 5.6 podman forgets --hooks-dir when it does, so the directory stands in containers.conf, as an installation
    has it.
    """
    engine.configure(f'[engine]\nhooks_dir = ["{engine.hooks_dir}"]\n')
    flows = engine.host.flows_file()
    container = engine.run_grafted(
        "--detach", "--restart=on-failure:3", IMAGE, "sh", "-c", f"{' '.join(ASK)}; exit 1",
        annotations={"flows": str(flows)},
    ).ok().strip()  # fmt: skip
    seen = read_flows_of(flows, 4)
    assert len(seen) == 4
    assert eventually(
        lambda: engine.podman("inspect", "--format", "{{.State.Status}}", container).ok().strip() == "exited"
    )
    assert engine.podman("logs", container).ok() == HELLO * 4
    remove(engine, container)
    engine.configure(None)


def test_the_container_is_killed(engine: Engine) -> None:
    container = start(engine)
    pid = engine.pid_of(container)
    namespace = namespace_of(pid)
    kill(pid)
    assert eventually(lambda: engine.workloads() == [])
    assert eventually(lambda: in_namespace(namespace) == [])
    assert eventually(lambda: forwarders() == [])
    remove(engine, container)


def test_conmon_is_killed(engine: Engine) -> None:
    """The container goes on, and so does its network; both end when it does."""
    container = start(engine)
    pid = engine.pid_of(container)
    kill(engine.conmon_of(container))
    assert len(forwarders()) == 1
    assert in_namespace(namespace_of(pid)) == [pid]
    kill(pid)
    assert eventually(lambda: forwarders() == [])
    assert eventually(lambda: engine.workloads() == [])
    remove(engine, container)


def test_the_forwarder_is_killed(engine: Engine) -> None:
    """The container goes on without any network; its socket does not outlive it; a restart gives it a new one."""
    container = start(engine)
    (forwarder,) = forwarders()
    kill(forwarder.pid)
    assert gone(forwarder)
    assert engine.podman("exec", container, *ASK).status != 0
    links = engine.podman("exec", container, "ip", "-o", "link").ok().splitlines()
    assert [line.split(":")[1].strip() for line in links] == ["lo"]
    assert engine.podman("exec", container, "ip", "route").ok() == ""
    engine.podman("restart", "--time", "0", container).ok()
    assert engine.podman("exec", container, *ASK).ok() == HELLO
    remove(engine, container)


@user_and_root
def test_the_broker_is_killed(engine: Engine) -> None:
    """No running workload notices, the next container starts a new broker, and that one knows the old workload."""
    old = start(engine)
    for broker in brokers():
        kill(broker.pid)
        assert gone(broker)
    assert engine.podman("exec", old, *ASK).ok() == HELLO
    new = start(engine)
    assert engine.podman("exec", new, *ASK).ok() == HELLO
    assert engine.podman("exec", old, *ASK).ok() == HELLO
    assert engine.workloads() == sorted([old[:12], new[:12]])
    remove(engine, old)
    assert eventually(lambda: engine.workloads() == [new[:12]])
    remove(engine, new)


@one
def test_two_brokers_at_once(engine: Engine) -> None:
    """A second start is harmless: one of them serves, the other leaves."""
    for broker in brokers():
        kill(broker.pid)
        assert gone(broker)
    commands = [engine.run_argv("--rm", IMAGE, *ASK) for _ in range(4)]
    with engine.started(*commands[0]) as a, engine.started(*commands[1]) as b, engine.started(*commands[2]) as c:
        for process in (a, b, c):
            out, err = process.communicate(timeout=30)
            assert out.decode() == HELLO, err
    assert engine.run(*commands[3]).ok() == HELLO


@one
def test_podman_run_is_killed(engine: Engine) -> None:
    """The container goes on, grafted, as it would without us; its own end is the graft's."""
    script = "trap 'exit 9' TERM; echo ready; sleep 60 & wait"
    with engine.started(*engine.run_argv("--rm", "--name", "ended", IMAGE, "sh", "-c", script)) as run:
        assert read_line(run) == "ready"
        run.kill()
        run.wait(timeout=20)
    assert engine.podman("exec", "ended", *ASK).ok() == HELLO
    engine.podman("kill", "--signal=TERM", "ended").ok()
    assert eventually(lambda: forwarders() == [])
    assert eventually(lambda: engine.containers() == [])


@user_and_root
def test_rm(engine: Engine) -> None:
    for status in (0, 7):
        assert engine.run_grafted("--rm", IMAGE, "sh", "-c", f"exit {status}").status == status
    assert engine.containers() == []
    assert eventually(lambda: forwarders() == [])


@user_and_root
def test_never_started(engine: Engine) -> None:
    """Created and removed: no graft was ever made."""
    argv = engine.run_argv(IMAGE, "true")
    argv[argv.index("run")] = "create"
    container = engine.run(*argv).ok().strip()
    assert engine.workloads() == []
    remove(engine, container)
