"""The journal on real files, and the tally that the summary is made of."""

import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.errors import ConfigError
from netns_graft.flow import Attribution, Flow, Outcome, Process
from netns_graft.journal import Journal, Tally


def flow(**changes):
    values = {
        "id": "f1",
        "workload": "exec-42",
        "protocol": "tcp",
        "source_address": "10.0.2.100",
        "source_port": 40898,
        "destination_address": "93.184.216.34",
        "destination_port": 443,
        "started": 1795371614.283421,
        "verdict": "allow",
        "upstream": "direct",
    }
    return Flow(**(values | changes))


def by(exe, pid=7, argv=("x",)):
    return Attribution(Process(pid, exe, argv, 1000), "sock_diag", 70)


class TestJournal:
    def test_one_line_a_flow(self, tmp_path):
        path = str(tmp_path / "flows.jsonl")
        journal = Journal(path)
        journal.write(flow(id="a"))
        journal.write(flow(id="b"))
        journal.close()
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
        assert lines.pop() == b""
        assert [json.loads(line)["id"] for line in lines] == ["a", "b"]
        assert json.loads(lines[0]) == flow(id="a").record()
        assert journal.lost == 0

    def test_the_file_is_for_its_owner_and_is_appended_to(self, tmp_path):
        path = str(tmp_path / "flows.jsonl")
        for _ in range(2):
            journal = Journal(path)
            assert not os.get_inheritable(journal._fd)
            journal.write(flow())
            journal.close()
            journal.close()  # twice is no harm: the descriptor's number may be another's by now
        assert os.stat(path).st_mode & 0o777 == 0o600
        with open(path) as file:
            assert len(file.readlines()) == 2

    def test_an_existing_files_mode_is_left_alone(self, tmp_path):
        path = tmp_path / "flows.jsonl"
        path.touch(0o640)
        path.chmod(0o640)
        Journal(str(path)).close()
        assert path.stat().st_mode & 0o777 == 0o640

    def test_a_name_that_is_not_utf8_comes_back_as_it_was(self, tmp_path):
        path = str(tmp_path / "flows.jsonl")
        exe, argument = os.fsdecode(b"/tmp/caf\xe9\xff"), os.fsdecode(b"\x1b[31m\xc3\xa9\xfe")
        journal = Journal(path)
        journal.write(flow(attribution=by(exe, argv=(exe, argument))))
        journal.close()
        with open(path, "rb") as file:
            line = file.read()
        assert line.isascii()
        assert b"caf\\udce9\\udcff" in line
        process = json.loads(line)["process"]
        assert os.fsencode(process["exe"]) == b"/tmp/caf\xe9\xff"
        assert os.fsencode(process["argv"][1]) == b"\x1b[31m\xc3\xa9\xfe"

    def test_lines_stay_whole_with_several_writers(self, tmp_path):
        path = str(tmp_path / "flows.jsonl")
        begin = threading.Barrier(4)

        def write(name):
            journal = Journal(path)
            begin.wait()
            for number in range(50):
                journal.write(flow(id=f"{name}-{number}", attribution=by("/bin/x", argv=("a" * 9000,))))
            journal.close()

        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with open(path) as file:
            ids = [json.loads(line)["id"] for line in file]
        assert sorted(ids) == sorted(f"{name}-{number}" for name in range(4) for number in range(50))

    @pytest.mark.parametrize(
        ("path", "reason", "hint"),
        [
            ("/", "Is a directory", None),
            ("{tmp}/missing/flows.jsonl", "No such file", "mkdir -p {tmp}/missing"),
            ("{tmp}/file/flows.jsonl", "Not a directory", None),
            ("", "No such file", None),
            ("a\0b", "null", None),
        ],
    )
    def test_an_unwritable_file_is_an_error_at_once(self, tmp_path, path, reason, hint):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError) as caught:
            Journal(path.format(tmp=tmp_path))
        assert caught.value.status == 125
        assert caught.value.where == "--flows"
        assert str(caught.value).startswith("--flows: cannot write to ")
        assert reason in str(caught.value)
        assert caught.value.hint == (hint and f"make the directory first: {hint.format(tmp=tmp_path)}")

    def test_a_dash_is_stderr(self, capfd):
        journal = Journal("-")
        journal.write(flow(id="to-stderr"))
        journal.close()
        assert json.loads(capfd.readouterr().err)["id"] == "to-stderr"
        os.write(2, b"still open")
        assert capfd.readouterr().err == "still open"

    def test_a_full_disk_is_told_once_and_counted(self, capfd):
        journal = Journal("/dev/full")
        for _ in range(3):
            journal.write(flow())
        journal.close()
        assert journal.lost == 3
        told = capfd.readouterr().err
        assert told == (
            "netns-graft: warning: --flows: '/dev/full': No space left on device; flows are missing from it\n"
        )

    def test_a_reader_that_left_is_told_too(self, capfd, tmp_path):
        pipe = str(tmp_path / "pipe")
        os.mkfifo(pipe)
        reader_fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        journal = Journal(pipe)
        os.close(reader_fd)
        journal.write(flow())
        journal.close()
        assert journal.lost == 1
        assert "Broken pipe" in capfd.readouterr().err

    def test_a_torn_line_does_not_spoil_the_next(self, tmp_path, capfd):
        """A pipe that takes no more cuts a write short as a nearly full disk does."""
        pipe = str(tmp_path / "pipe")
        os.mkfifo(pipe)
        reader_fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        journal = Journal(pipe)
        os.set_blocking(journal._fd, False)
        long = flow(id="long", attribution=by("/bin/x", argv=("a" * 200_000,)))
        journal.write(long)
        got = os.read(reader_fd, 1 << 20)
        journal.write(flow(id="next"))
        got += os.read(reader_fd, 1 << 20)
        journal.close()
        os.close(reader_fd)
        torn, whole, end = got.split(b"\n")
        with pytest.raises(ValueError):
            json.loads(torn)
        assert json.loads(whole)["id"] == "next"
        assert end == b""
        assert journal.lost == 1
        assert capfd.readouterr().err.count("\n") == 1

    def test_a_record_costs_little(self, tmp_path):
        journal = Journal(str(tmp_path / "flows.jsonl"))
        one = flow(attribution=by("/usr/bin/curl", argv=("curl", "https://example.com")))
        best = min(_seconds(lambda: journal.write(one), 200) for _ in range(5))
        journal.close()
        assert best < 200e-6, "a record stands in every connection's way"


def _seconds(call, times):
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


class TestTally:
    def test_like_flows_make_one_group(self):
        tally = Tally()
        for _ in range(3):
            tally.add(flow(attribution=by("/usr/bin/curl"), bytes_sent=10, bytes_received=20, duration=0.5))
        tally.add(flow(attribution=by("/usr/bin/curl", pid=8)))
        first, second = tally.groups
        assert (first.process, first.pid, first.destination) == ("curl", 7, "93.184.216.34:443")
        assert (first.count, first.bytes_sent, first.bytes_received, first.seconds) == (3, 30, 60, 1.5)
        assert (second.pid, second.count) == (8, 1)
        assert (tally.total, tally.denied, tally.unattributed) == (4, 0, 0)

    def test_the_name_is_shown_before_the_address(self):
        tally = Tally()
        tally.add(flow(host="example.com"))
        tally.add(flow(destination_address="2001:db8::1", destination_port=80))
        assert [group.destination for group in tally.groups] == ["example.com:443", "[2001:db8::1]:80"]

    def test_denied_and_unattributed_are_counted(self):
        tally = Tally()
        tally.add(flow(verdict="deny", rule="--deny :443", outcome=Outcome.DENIED, error="denied"))
        tally.add(flow(attribution=Attribution(None, "proc", 9)))
        assert (tally.total, tally.denied, tally.unattributed) == (2, 1, 2)
        assert (tally.groups[0].rule, tally.groups[0].error, tally.groups[0].process) == (
            "--deny :443",
            "denied",
            None,
        )

    def test_a_process_without_an_exe_goes_by_its_first_argument(self):
        tally = Tally()
        for who in (by(None, 1, ("/opt/tool", "-v")), by(None, 2, ()), by("/", 3, ())):
            tally.add(flow(attribution=who))
        assert [group.process for group in tally.groups] == ["tool", "?", "?"]

    def test_dns_questions_show_only_when_something_is_wrong(self):
        tally = Tally()
        tally.add(flow(protocol="dns", host="ok.example"))
        tally.add(flow(protocol="dns", host="no.example", verdict="deny", outcome=Outcome.DENIED))
        tally.add(flow(protocol="dns", host="slow.example", outcome=Outcome.TIMEOUT))
        assert [group.destination for group in tally.groups] == ["no.example", "slow.example"]
        assert (tally.total, tally.questions, tally.denied, tally.unattributed) == (0, 3, 1, 0)

    def test_memory_is_bounded_and_the_counts_stay_exact(self):
        tally = Tally(limit=10)
        for number in range(100):
            denied = {"verdict": "deny", "outcome": Outcome.DENIED} if number % 2 else {}
            tally.add(flow(destination_port=number + 1, bytes_sent=1, **denied))
        assert len(tally.groups) == 12  # and the rest of each verdict
        assert (tally.total, tally.denied) == (100, 50)
        assert sum(group.count for group in tally.groups) == 100
        assert sum(group.bytes_sent for group in tally.groups) == 100
        assert {(group.destination, group.verdict) for group in tally.groups[10:]} == {
            ("(others)", "allow"),
            ("(others)", "deny"),
        }

    def test_it_goes_over_a_pipe(self):
        tally = Tally()
        tally.add(
            flow(attribution=by(os.fsdecode(b"/x/\xff\n")), host="example.com", bytes_sent=5, duration=0.25)
        )
        tally.add(flow(verdict="deny", rule="--deny :443", outcome=Outcome.DENIED, upstream=None))
        tally.add(flow(protocol="dns", host="example.com"))
        text = tally.to_json()
        assert text.isascii() and "\n" not in text
        copy = Tally.from_json(text)
        assert copy.to_json() == text
        assert copy.groups == tally.groups
        copy.add(flow(attribution=by(os.fsdecode(b"/x/\xff\n")), host="example.com"))
        assert copy.groups[0].count == 2

    @given(st.text() | st.sampled_from(["{}", "[]", '{"total": 1}', "null", '{"total":"x"}']))
    def test_what_is_no_tally_is_a_value_error(self, text):
        with pytest.raises(ValueError):
            Tally.from_json(text)

    def test_a_tally_cut_short_is_a_value_error(self):
        tally = Tally()
        tally.add(flow())
        text = tally.to_json()
        for length in range(len(text)):
            with pytest.raises(ValueError):
                Tally.from_json(text[:length])
