"""The README's command, to the letter: an unchanged program, a proxy, and a record that names the process."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from lab import addresses as at
from lab.grafting import Host
from lab.server_files import PAGE

RECORD = {
    "schema", "id", "workload", "container_id", "started", "duration", "protocol", "source", "destination",
    "process", "attribution", "verdict", "rule", "upstream", "bytes_sent", "bytes_received", "outcome",
    "error",
}  # fmt: skip
DESTINATION = {"address", "port", "host", "host_source", "resolved", "asked"}
PROCESS = {"pid", "container_pid", "exe", "argv", "uid", "parents", "shared_with"}
ATTRIBUTION = {"method", "nat", "micros"}


@pytest.mark.parametrize("order", [[], ["--accept-first"]], ids=["held", "accept-first"])
def test_readme(host: Host, order: list[str]) -> None:
    url, ca = "https://example.com/", str(host.lab.place / "ca.pem")
    before = datetime.now(UTC)
    done = host.graft(
        [*order, "--proxy", "socks5h://127.0.0.1:1080"],
        "sh", "-c", f"echo $$ > pid; exec curl -sS --cacert {ca} {url}",
    )  # fmt: skip
    assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")
    flow = done.one_tcp()
    assert set(flow) == RECORD
    assert flow["schema"] == 1
    assert flow["id"]
    assert re.fullmatch(r"exec-\d+", flow["workload"])
    assert flow["container_id"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", flow["started"])
    began = datetime.fromisoformat(flow["started"])
    assert before <= began <= before + timedelta(seconds=done.seconds)
    assert 0 < flow["duration"] < done.seconds
    assert flow["protocol"] == "tcp"
    assert set(flow["source"]) == {"address", "port"}
    assert set(flow["destination"]) == DESTINATION
    assert flow["destination"]["port"] == 443
    assert flow["destination"]["host"] == "example.com"
    assert flow["destination"]["host_source"] == "synthetic"
    assert flow["destination"]["resolved"] is None  # the proxy was given the name
    assert set(flow["process"]) == PROCESS
    assert flow["process"]["pid"] == int((host.place / "pid").read_text())
    assert flow["process"]["container_pid"] is None
    assert flow["process"]["exe"] == "/usr/bin/curl"
    assert flow["process"]["argv"] == ["curl", "-sS", "--cacert", ca, url]
    assert flow["process"]["uid"] == host.identity.uid
    assert set(flow["attribution"]) == ATTRIBUTION
    assert flow["attribution"]["method"] == ("sock_diag" if host.mode == "route" else host.mode)
    assert flow["attribution"]["nat"] == []
    assert 0 < flow["attribution"]["micros"] < 1_000_000
    assert (flow["verdict"], flow["rule"]) == ("allow", "default")
    assert flow["upstream"] == "socks5h://127.0.0.1:1080"
    assert flow["bytes_sent"] > 300  # a ClientHello and more
    assert flow["bytes_received"] > len(PAGE) + 500
    assert (flow["outcome"], flow["error"]) == ("ok", None)


def test_no_question_about_the_name_leaves_the_host(host: Host) -> None:
    began = datetime.now().timestamp()
    done = host.graft(["--proxy", "socks5h://127.0.0.1:1080"], "curl", "-sS", "http://example.com/")
    assert (done.status, done.stdout) == (0, PAGE)
    assert host.lab.questions(began) == []
    assert host.lab.questions(began, server=at.DNS_OF_PROXIES) != []  # the proxy's own


def test_parents(host: Host) -> None:
    done = host.graft([], "sh", "-c", f"echo $$ > pid; curl -sS http://{at.WEB}/; exit 0")
    flow = done.one_tcp()
    parent = flow["process"]["parents"][0]
    assert parent == {"pid": int((host.place / "pid").read_text()), "exe": "/usr/bin/dash"}
    assert flow["process"]["pid"] != parent["pid"]


def test_direct_by_name(host: Host) -> None:
    done = host.graft([], "curl", "-sS", "-4", "http://example.com/")
    assert (done.status, done.stdout) == (0, PAGE)
    flow = done.one_tcp()
    assert flow["upstream"] == "direct"
    assert flow["destination"]["address"] == at.WEB
    assert flow["destination"]["host"] == "example.com"
    assert flow["destination"]["host_source"] == "dns"
    assert "example.com" in done.names()
    assert flow["bytes_sent"] == len(
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
    )


@pytest.mark.parametrize("address", [at.WEB, f"[{at.WEB6}]"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("order", [[], ["--accept-first"]], ids=["held", "accept-first"])
def test_direct_by_address(host: Host, address: str, order: list[str]) -> None:
    done = host.graft(order, "curl", "-sS", f"http://{address}/")
    assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")
    flow = done.one_tcp()
    assert flow["destination"]["address"] == address.strip("[]")
    assert flow["destination"]["host"] is None
    assert flow["process"]["exe"] == "/usr/bin/curl"
    assert flow["outcome"] == "ok"


def test_flows_are_appended(user_host: Host) -> None:
    flows = user_host.place / "all.jsonl"
    for _ in range(2):
        done = user_host.run(
            *user_host.graft_argv(["--flows", str(flows)], ["curl", "-sS", f"http://{at.WEB}/"])
        )
        assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in flows.read_text().splitlines()]
    assert len(records) == 2
    assert records[0]["id"] != records[1]["id"]
    assert records[0]["workload"] != records[1]["workload"]


@pytest.mark.route
def test_flows_on_stderr(user_host: Host) -> None:
    done = user_host.run(*user_host.graft_argv(["--flows", "-"], ["curl", "-sS", f"http://{at.WEB}/"]))
    assert done.stdout == PAGE
    (record,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert set(record) == RECORD


def test_without_subordinate_ids(nosub_host: Host) -> None:
    done = nosub_host.graft([], "curl", "-sS", f"http://{at.WEB}/")
    assert (done.status, done.stdout, done.stderr) == (0, PAGE, "")
    assert done.one_tcp()["process"]["uid"] == nosub_host.identity.uid
