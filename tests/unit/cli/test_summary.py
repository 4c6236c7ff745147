"""The table as it is drawn, at several widths and with hostile names."""

import io
import os
import re

import pytest

from netns_graft.cli.summary import print_summary
from netns_graft.cli.terminal import size
from netns_graft.flow import Attribution, Flow, Outcome, Process
from netns_graft.journal import Tally


def flow(exe="/usr/bin/curl", pid=7, **changes):
    values = {
        "id": "f1",
        "workload": "exec-42",
        "protocol": "tcp",
        "source_address": "10.0.2.100",
        "source_port": 40898,
        "destination_address": "93.184.216.34",
        "destination_port": 443,
        "started": 0.0,
        "verdict": "allow",
        "upstream": "direct",
        "attribution": Attribution(Process(pid, exe, (), 1000), "sock_diag", 70) if exe else None,
    }
    return Flow(**(values | changes))


def drawn(*flows):
    tally = Tally()
    for one in flows:
        tally.add(one)
    file = io.StringIO()
    print_summary(tally, file)
    return file.getvalue()


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


DENIED = {"verdict": "deny", "rule": "--deny 10.0.0.0/8", "outcome": Outcome.DENIED, "upstream": None}


def test_a_row_says_who_where_and_how_much():
    text = drawn(flow(host="example.com", bytes_sent=517, bytes_received=5230, duration=0.0123))
    heading, _, row, footer = text.splitlines()
    assert re.split(r"\s{2,}", heading.strip()) == [
        "process", "destination", "verdict", "upstream", "sent", "received", "time",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", row.strip()) == [
        "curl 7", "example.com:443", "allow", "direct", "517 B", "5.1 KiB", "12 ms",
    ]  # fmt: skip
    assert footer == "1 flow, 0 denied; 517 B sent, 5.1 KiB received"


def test_denied_rows_come_first_then_failed_ones_then_the_biggest():
    text = drawn(
        flow(host="small.example", bytes_received=1),
        flow(host="big.example", bytes_received=1000),
        flow(host="refused.example", outcome=Outcome.REFUSED),
        flow(host="denied.example", **DENIED),
    )
    assert re.findall(r"\w+\.example", text) == [
        "denied.example", "refused.example", "big.example", "small.example",
    ]  # fmt: skip
    assert "none: --deny 10.0.0.0/8" in text
    assert "direct: refused" in text
    assert "4 flows, 1 denied" in text


def test_like_flows_are_one_row_with_their_number():
    text = drawn(*[flow(bytes_sent=512)] * 4)
    assert "93.184.216.34:443 ×4" in text
    assert "2.0 KiB" in text


def test_what_has_no_process_is_said():
    text = drawn(flow(exe=None), flow(protocol="dns", host="no.example", exe=None, **DENIED))
    assert "unknown" in text
    assert "no.example (dns)" in text
    assert "1 without a process; 1 DNS question" in text


def test_no_flows_no_table():
    assert drawn() == "0 flows, 0 denied; 0 B sent, 0 B received\n"


def test_names_of_the_workloads_choosing_are_harmless(monkeypatch):
    hostile = "\x1b[2J[bold red]x[/]\r\n\x9b31m\u202eevil:smile:\udcff\x07"
    monkeypatch.setenv("COLUMNS", "500")
    shown = r"\x1b[2J[bold red]x[/]\r\n\x9b31m\u202eevil:smile:\xff\x07"
    for where in (
        {"exe": f"/bin/{hostile}"},
        {"host": hostile},
        {"rule": hostile, "verdict": "deny"},
        {"upstream": hostile},
    ):
        text = drawn(flow(**where))
        assert shown.rpartition("]")[2] in text if "exe" in where else shown in text
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 79, 300])
def test_every_width_does(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = drawn(flow(host="a-rather-long-name.of-a-host.example.com"), flow(host="x.org", **DENIED))
    assert all(len(line) <= columns for line in text.splitlines())
    if columns >= 40:
        letters = re.sub(r"\s", "", text)
        assert "2flows,1denied" in letters


def test_many_rows_are_cut_and_the_rest_is_counted():
    text = drawn(*[flow(destination_port=port) for port in range(1, 251)])
    assert text.count("93.184.216.34:") == 200
    assert "... and 50 more" in text
    assert "250 flows" in text


def test_a_terminal_that_speaks_ascii_only():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace", write_through=True)
    tally = Tally()
    tally.add(flow(exe="/bin/é"))
    print_summary(tally, file)
    assert b"93.184.216.34:443" in file.buffer.getvalue()


def test_a_terminal_that_is_gone_is_nobodys_error():
    tally = Tally()
    tally.add(flow())
    master_fd, terminal_fd = os.openpty()
    os.close(master_fd)
    with open(terminal_fd, "wb", buffering=0) as terminal:
        file = io.TextIOWrapper(terminal, write_through=True)
        print_summary(tally, file)
        with pytest.raises(OSError, match="Input/output error"):
            file.write("x")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5230, "5.1 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (256 * 1024**2, "256.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**4, "3.0 TiB"),
    ],
)
def test_size(count, text):
    assert size(count) == text
