"""Which way a container's flows leave: lists of addresses and a resolver behind the proxy, as `exec` has them."""

import json
import time
from pathlib import Path

from lab import addresses as at
from lab.containers import IMAGE, Engine, read_flows_of
from lab.matrix import one
from lab.server_files import PAGE

SOCKS = f"socks5://{at.PROXY}:{at.SOCKS}"
SCRIPT = f"wget -qO- http://{at.WEB}/; wget -qO- http://v4only.example.com/; wget -qO- http://{at.OTHER}/"


def check(flows: Path, engine: Engine, began: float) -> None:
    tcp = [(flow["destination"]["address"], flow["upstream"]) for flow in read_flows_of(flows, 3)]
    assert tcp == [(at.WEB, "direct"), (at.WEB, "direct"), (at.OTHER, SOCKS)]
    dns = [flow for flow in map(json.loads, flows.read_text().splitlines()) if flow["protocol"] == "dns"]
    assert {flow["upstream"] for flow in dns} == {f"{SOCKS},{at.DNS_OF_PROXIES}:53"}
    asked = engine.lab.questions(began, at.DNS_OF_PROXIES)
    assert asked and {question["transport"] for question in asked} == {"tcp"}


@one
def test_by_annotation(engine: Engine) -> None:
    flows, began = engine.host.flows_file(), time.time()
    direct = engine.host.script("direct.txt", f"{at.WEB}\n", mode=0o644)
    done = engine.run_grafted(
        "--rm", IMAGE, "sh", "-c", SCRIPT,
        annotations={
            "proxy": SOCKS, "direct-file": direct, "dns-server": at.DNS_OF_PROXIES, "flows": str(flows),
        },
    )  # fmt: skip
    assert done.ok() == PAGE.decode() * 3, done.stderr
    check(flows, engine, began)


@one
def test_by_option(engine: Engine) -> None:
    """A path that is relative to where we are, which is not where the forwarder is."""
    flows, began = engine.host.flows_file(), time.time()
    engine.host.script("direct.txt", f"{at.WEB}\n", mode=0o644)
    done = engine.graft(
        "run", "--proxy", SOCKS, "--direct-file", "direct.txt", "--dns-server", at.DNS_OF_PROXIES,
        "--flows", str(flows), "--rm", IMAGE, "sh", "-c", SCRIPT,
    )  # fmt: skip
    assert done.ok() == PAGE.decode() * 3, done.stderr
    check(flows, engine, began)


@one
def test_a_list_that_is_wrong_is_the_end_of_it(engine: Engine) -> None:
    direct = engine.host.script("direct.txt", f"{at.WEB}\nexample.org\n", mode=0o644)
    done = engine.graft("run", "--proxy", SOCKS, "--direct-file", direct, "--rm", IMAGE, "echo", "it ran")
    assert done.status != 0 and "it ran" not in done.stdout
    assert f"{direct}:2: 'example.org' is neither an address nor a CIDR" in done.stderr
