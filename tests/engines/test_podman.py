"""Any image, unchanged, in podman: grafted by an annotation, seen as what it is, and as closed as `exec`."""

from lab import addresses as at
from lab.containers import IMAGE, Engine, in_namespace, read_flows_of
from lab.grafting import namespace_of
from lab.internet import eventually
from lab.matrix import one, rootless, user_and_root
from lab.server_files import PAGE
from lab.sniffer import Sniffer

HELLO = PAGE.decode()
PROXY = "socks5h://127.0.0.1:1080"


def test_by_name_through_a_proxy(engine: Engine) -> None:
    flows = engine.host.flows_file()
    done = engine.run_grafted(
        "--rm", IMAGE, "wget", "-qO-", "http://example.com/", annotations={"proxy": PROXY, "flows": str(flows)}
    )
    assert done.ok() == HELLO, done.stderr
    (flow,) = read_flows_of(flows, 1)
    assert flow["destination"]["host"] == "example.com"
    assert flow["upstream"] == PROXY
    assert flow["outcome"] == "ok"
    assert flow["process"]["exe"] == "/bin/busybox"
    assert flow["process"]["argv"] == ["wget", "-qO-", "http://example.com/"]


def test_who(engine: Engine) -> None:
    """The record names the container, and its process by the pid on both sides."""
    flows = engine.host.flows_file()
    script = f"wget -qO- http://{at.WEB}/ >/dev/null & wait $!; echo $!"
    done = engine.run_grafted(
        "--cidfile", str(engine.host.place / "cid"), "--rm", IMAGE, "sh", "-c", script,
        annotations={"flows": str(flows)},
    )  # fmt: skip
    inner = int(done.ok())
    container = (engine.host.place / "cid").read_text()
    (flow,) = read_flows_of(flows, 1)
    assert flow["container_id"] == container
    assert container.startswith(flow["workload"])
    assert flow["process"]["container_pid"] == inner > 1
    assert flow["process"]["pid"] != inner
    assert flow["process"]["parents"][0]["exe"] == "/bin/busybox"


def test_a_static_program(engine: Engine) -> None:
    assert engine.run_grafted("--rm", IMAGE, "fetch", "http://example.com/").ok() == HELLO


def test_other_containers_are_untouched(engine: Engine) -> None:
    done = engine.run_grafted("--rm", IMAGE, "ip", "-o", "link", annotations={})
    assert [line.split(":")[1].strip() for line in done.ok().splitlines()] == ["lo"]


def test_denied(engine: Engine) -> None:
    flows = engine.host.flows_file()
    rules = {"default": "deny", "allow": "example.com:80", "flows": str(flows)}
    script = f"wget -qO- http://example.com/; wget -qO- http://{at.OTHER}/ || echo refused"
    with Sniffer(engine.lab) as sniffer:
        done = engine.run_grafted("--rm", IMAGE, "sh", "-c", script, annotations=rules)
        assert [f for f in sniffer.seen() if f.destination == at.OTHER] == []
    assert done.ok() == HELLO + "refused\n"
    assert [flow["verdict"] for flow in read_flows_of(flows, 2)] == ["allow", "deny"]


def test_several_rules_in_one_annotation(engine: Engine) -> None:
    rules = {"default": "deny", "allow": f"{at.WEB}:80 {at.OTHER}:80"}
    script = f"wget -qO- http://{at.WEB}/; wget -qO- http://{at.OTHER}/"
    done = engine.run_grafted("--rm", IMAGE, "sh", "-c", script, annotations=rules)
    assert done.ok() == HELLO * 2


@one
def test_a_chain_in_an_annotation(engine: Engine) -> None:
    """podman reads --annotation as CSV: what has a comma in it wants quotes. Without, nothing is lost in silence."""
    chain = f"{PROXY},socks5h://{at.PROXY}:{at.SOCKS}"
    command = ["--rm", IMAGE, "wget", "-qO-", "http://example.com/"]
    flows = engine.host.flows_file()
    quoted = f'--annotation="io.netns-graft.proxy={chain}"'
    done = engine.run(*engine.run_argv(quoted, *command, annotations={"flows": str(flows)}))
    assert done.ok() == HELLO
    (flow,) = read_flows_of(flows, 1)
    assert f"socks5h://{at.PROXY}:{at.SOCKS}" in flow["upstream"]
    done = engine.run(*engine.run_argv(f"--annotation=io.netns-graft.proxy={chain}", *command, annotations={}))
    assert done.status == 125
    assert HELLO not in done.stdout


def test_exec(engine: Engine) -> None:
    """`podman exec` starts what is nobody's child in the container: grafted all the same, and known."""
    flows = engine.host.flows_file()
    container = engine.run_grafted(
        "--detach", IMAGE, "sleep", "60", annotations={"flows": str(flows)}
    ).ok().strip()  # fmt: skip
    done = engine.podman("exec", container, "wget", "-qO-", f"http://{at.WEB}/")
    engine.podman("rm", "--force", "--time", "0", container).ok()
    assert done.ok() == HELLO
    (flow,) = read_flows_of(flows, 1)
    assert flow["process"]["argv"][0] == "wget"
    assert flow["process"]["container_pid"] > 1
    assert flow["container_id"] == container


MODES = {
    "keep-id": ("--userns=keep-id",), "auto": ("--userns=auto",), "uid 33": ("--user=33",),
    "keep-id and uid 33": ("--userns=keep-id", "--user=33"), "read-only": ("--read-only",),
    "no capabilities": ("--cap-drop=all", "--security-opt=no-new-privileges"),
}  # fmt: skip


@rootless
def test_user_namespaces(engine: Engine) -> None:
    """Whoever the container's processes are, and however deep their user namespace: grafted and attributed."""
    for mode, options in MODES.items():
        flows = engine.host.flows_file()
        done = engine.run_grafted(
            "--rm", *options, IMAGE, "wget", "-qO-", "http://example.com/", annotations={"flows": str(flows)}
        )
        assert done.ok() == HELLO, mode
        flow = read_flows_of(flows, 1)[-1]
        assert flow["process"] is not None, mode
        assert flow["process"]["argv"][0] == "wget", mode


@user_and_root
def test_hosts_of_podmans(engine: Engine) -> None:
    """What podman was told of names stays in the container, and what it names there is reached."""
    script = "cat /etc/hosts; wget -qO- http://added.example/; wget -qO- http://example.com/"
    done = engine.run_grafted("--rm", "--add-host", f"added.example:{at.WEB}", IMAGE, "sh", "-c", script)
    text = done.ok()
    assert f"{at.WEB}\tadded.example" in text.replace(" ", "\t")
    assert text.endswith(HELLO * 2)


@user_and_root
def test_a_container_that_joins_another(engine: Engine) -> None:
    """`--network=container:` shares the namespace and thereby the graft, to the last member's end."""
    first = engine.run_grafted("--detach", "--name", "first", IMAGE, "sleep", "60").ok().strip()
    join = ["run", "--detach", *engine.limits, "--network=container:first", IMAGE, "sleep", "60"]
    member = engine.podman(*join).ok().strip()
    assert engine.workloads() == [first[:12]]
    namespace = namespace_of(engine.pid_of(member))
    assert namespace == namespace_of(engine.pid_of("first"))
    assert engine.podman("exec", member, "wget", "-qO-", f"http://{at.WEB}/").ok() == HELLO
    engine.podman("kill", "first").ok()
    engine.podman("wait", "first").ok()
    assert engine.podman("exec", member, "wget", "-qO-", f"http://{at.WEB}/").ok() == HELLO
    for name in (member, "first"):  # podman removes no container before those that depend on it
        engine.podman("rm", "--force", "--time", "0", name).ok()
    assert eventually(lambda: in_namespace(namespace) == [])


@user_and_root
def test_a_pod_is_grafted_once(engine: Engine) -> None:
    """The first annotated member grafts the pod's namespace, the next one finds it done."""
    create = ["pod", "create", "--name", "pod", "--network=none", "--infra-command=sleep 60", "--infra-image", IMAGE]
    engine.podman(*create).ok()
    flows = engine.host.flows_file()
    marks = ["--annotation=io.netns-graft.default=allow", f"--annotation=io.netns-graft.flows={flows}"]
    for name in ("one", "two"):
        words = ["run", "--detach", "--pod", "pod", "--name", name, *engine.limits, *marks, IMAGE, "sleep", "60"]
        engine.podman(*words).ok()
    assert len(engine.workloads()) == 1
    for name in ("one", "two"):
        assert engine.podman("exec", name, "wget", "-qO-", f"http://{at.WEB}/").ok() == HELLO
    ids = {engine.podman("inspect", "--format", "{{.Id}}", name).ok().strip() for name in ("one", "two")}
    engine.podman("stop", "--time", "0", "one").ok()
    assert engine.podman("exec", "two", "wget", "-qO-", f"http://{at.WEB}/").ok() == HELLO
    engine.podman("pod", "rm", "--force", "--time", "0", "pod").ok()
    seen = read_flows_of(flows, 3)
    assert len(seen) == 3
    assert {flow["container_id"] for flow in seen} <= ids


@one
def test_networks_that_are_not_ours_are_refused(engine: Engine) -> None:
    """A container with a network of its own beside ours would be a way around us: it does not start."""
    argv = [word for word in engine.run_argv("--rm", IMAGE, "true") if word != "--network=none"]
    for network in ("host", "slirp4netns"):
        done = engine.run(*argv[: argv.index(IMAGE)], f"--network={network}", *argv[argv.index(IMAGE) :])
        assert done.status != 0, network
        assert "netns-graft: " in engine.log_text(), network
