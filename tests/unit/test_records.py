"""Records read back are the flows that they were written from."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.flow import Attribution, Flow, NatStep, Outcome, Parent, Process
from netns_graft.records import Reader, flow_of, flow_on

TEXT = st.text(max_size=20)
PORT = st.integers(0, 65535)
FLOWS = st.builds(
    Flow,
    id=TEXT, workload=TEXT, protocol=st.sampled_from(["tcp", "udp", "dns"]), source_address=TEXT, source_port=PORT,
    destination_address=TEXT, destination_port=PORT, started=st.integers(0, 4_000_000_000).map(float),
    host=st.none() | TEXT, host_source=st.none() | TEXT, resolved=st.none() | TEXT, container_id=st.none() | TEXT,
    attribution=st.none() | st.builds(
        Attribution,
        process=st.none() | st.builds(
            Process,
            pid=PORT, exe=st.none() | TEXT, argv=st.lists(TEXT, max_size=3).map(tuple), uid=PORT,
            parents=st.lists(st.builds(Parent, PORT, st.none() | TEXT), max_size=3).map(tuple),
            container_pid=st.none() | PORT,
        ),
        method=TEXT, micros=PORT, nat=st.lists(st.builds(NatStep, TEXT, TEXT), max_size=2).map(tuple),
    ),
    verdict=st.sampled_from(["allow", "deny"]), rule=TEXT, upstream=st.none() | TEXT, bytes_sent=PORT,
    bytes_received=PORT, duration=st.integers(0, 10**9).map(lambda micros: round(micros / 1e6, 6)),
    outcome=st.sampled_from(Outcome), error=st.none() | TEXT,
)  # fmt: skip


@given(FLOWS)
def test_a_record_is_its_flow_again(flow):
    assert flow_of(json.loads(json.dumps(flow.record()))) == flow
    assert flow_on(json.dumps(flow.record()).encode() + b"\n") == flow


@given(st.binary(max_size=60))
def test_a_line_that_is_none_is_passed_over(line):
    assert flow_on(line) is None


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"1", b'{"schema": 2}', b'{"schema": 1}', b'{"schema": 1, "source": 5, "destination": {}}']
)
def test_what_is_json_and_no_record_is_passed_over(line):
    assert flow_on(line) is None


def test_whole_lines_only_and_each_once(tmp_path):
    path = tmp_path / "flows.jsonl"
    path.write_bytes(b"before\n")
    reader = Reader(str(path), os.path.getsize(path))
    try:
        with path.open("ab", buffering=0) as file:
            file.write(b"one\ntw")
            assert list(reader.lines()) == [b"one\n"]
            assert list(reader.lines()) == []
            file.write(b"o\nthree\n")
            assert list(reader.lines()) == [b"two\n", b"three\n"]
    finally:
        reader.close()
