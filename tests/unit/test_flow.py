"""A flow's record, word for word as the contract has it."""

import json

from netns_graft.flow import Attribution, Endpoint, Flow, NatStep, Outcome, Parent, Process, Sharer


def full():
    process = Process(
        pid=4250,
        exe="/usr/bin/curl",
        argv=("curl", "https://example.com"),
        uid=1000,
        parents=(Parent(4242, "/usr/bin/bash"),),
        container_pid=7,
    )
    return Flow(
        id="abc",
        workload="exec-4242",
        protocol="tcp",
        source_address="10.0.2.100",
        source_port=40898,
        destination_address="93.184.216.34",
        destination_port=443,
        started=1795371614.283421,
        host="example.com",
        host_source="dns",
        attribution=Attribution(process, "sock_diag", 74),
        verdict="allow",
        rule="default",
        upstream="direct",
        bytes_sent=517,
        bytes_received=5230,
        duration=0.0123,
    )


def test_the_record_of_the_contract():
    assert full().record() == {
        "schema": 1,
        "id": "abc",
        "workload": "exec-4242",
        "container_id": None,
        "started": "2026-11-22T18:20:14.283421Z",
        "duration": 0.0123,
        "protocol": "tcp",
        "source": {"address": "10.0.2.100", "port": 40898},
        "destination": {
            "address": "93.184.216.34",
            "port": 443,
            "host": "example.com",
            "host_source": "dns",
            "resolved": None,
            "asked": None,
        },
        "process": {
            "pid": 4250,
            "container_pid": 7,
            "exe": "/usr/bin/curl",
            "argv": ["curl", "https://example.com"],
            "uid": 1000,
            "parents": [{"pid": 4242, "exe": "/usr/bin/bash"}],
            "shared_with": [],
        },
        "attribution": {"method": "sock_diag", "nat": [], "micros": 74},
        "verdict": "allow",
        "rule": "default",
        "upstream": "direct",
        "bytes_sent": 517,
        "bytes_received": 5230,
        "outcome": "ok",
        "error": None,
    }


def test_nobody_found_is_null_and_never_a_guess():
    flow = full()
    flow.attribution = Attribution(None, "proc", 2100)
    record = flow.record()
    assert record["process"] is None
    assert record["attribution"] == {"method": "proc", "nat": [], "micros": 2100}
    flow.attribution = None
    assert flow.record()["process"] is None
    assert flow.record()["attribution"] is None


def test_each_translation_undone_stands_in_the_record():
    flow = full()
    flow.attribution = Attribution(None, "sock_diag", 700, (NatStep("172.31.5.9:40530", "127.0.0.1:40530"),))
    assert flow.record()["attribution"]["nat"] == [{"from": "172.31.5.9:40530", "to": "127.0.0.1:40530"}]


def test_whole_seconds_keep_their_microseconds():
    flow = full()
    flow.started = 0.0
    assert flow.record()["started"] == "1970-01-01T00:00:00.000000Z"


def test_outcomes_are_the_contracts_words():
    assert [outcome.value for outcome in Outcome] == [
        "ok",
        "denied",
        "refused",
        "unreachable",
        "timeout",
        "reset",
        "upstream-failed",
        "upstream-auth",
        "workload-gone",
    ]


def test_every_record_is_json():
    for outcome in Outcome:
        flow = full()
        flow.outcome = outcome
        assert json.loads(json.dumps(flow.record()))["outcome"] == outcome.value


def test_what_nat_hid_is_what_the_record_shows():
    flow = full()
    flow.attribution = Attribution(
        None, "sock_diag", 70, source=Endpoint("127.0.0.1", 40530), asked=Endpoint("2001:db8::1", 443)
    )
    record = flow.record()
    assert record["source"] == {"address": "127.0.0.1", "port": 40530}
    assert record["destination"]["address"] == "93.184.216.34"
    assert record["destination"]["asked"] == "[2001:db8::1]:443"


def test_who_else_holds_the_socket():
    process = Process(4250, "/usr/bin/curl", (), 1000, shared_with=(Sharer(4251, None), Sharer(4252, "/bin/sh")))
    flow = full()
    flow.attribution = Attribution(process, "sock_diag", 74)
    assert flow.record()["process"]["shared_with"] == [{"pid": 4251, "exe": None}, {"pid": 4252, "exe": "/bin/sh"}]
