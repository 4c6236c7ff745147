"""What ``run`` and ``build`` share: settings, credentials, the record, and that nothing is left."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from netns_graft.cli.build import Step, Steps, run_of
from netns_graft.cli.launch import launch
from netns_graft.cli.options import parse_exec
from netns_graft.cli.run import _annotations
from netns_graft.cli.summary import print_steps
from netns_graft.errors import ConfigError, GraftError, UsageError
from netns_graft.flow import Flow, Outcome
from netns_graft.linux import places
from netns_graft.options import named_options

SECRET = "s3cr:et@x"


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "runtime_dir", lambda environ=None: places.private_directory(str(tmp_path / "run")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def begin(line: str, environ=None, **more):
    return launch("run", parse_exec([*line.split(), "--", "x"], environ or {})[0], environ or {}, **more)


def flow(workload: str = "build-1-step1", **changed) -> Flow:
    given = {
        "id": "1", "workload": workload, "protocol": "tcp", "source_address": "198.18.0.1", "source_port": 4000,
        "destination_address": "93.184.216.34", "destination_port": 443, "started": 0.0, "verdict": "allow",
        "upstream": "direct",
    }  # fmt: skip
    return Flow(**{**given, **changed})


def test_settings_are_what_the_hook_reads_in_the_order_given():
    line = "--no-summary --allow a.org --deny :25 --allow b.org --dns synthetic --default deny --accept-first"
    line += " --attribution proc"
    with begin(line) as this:
        read = named_options(this.settings)
    assert read.rules == (("allow", "a.org"), ("deny", ":25"), ("allow", "b.org"))
    assert (read.default, read.dns, read.accept_first) == ("deny", "synthetic", True)
    assert read.attribution == "proc"


def test_files_are_handed_on_by_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = "--proxy socks5://p:1080 --select-proxy-mode random --direct-file a.txt --proxy-file /b.txt --dns-server ::1"
    with begin(line) as this:
        read = named_options(this.settings)
    assert (read.direct_file, read.proxy_file) == (str(tmp_path / "a.txt"), "/b.txt")
    assert (read.select_proxy_mode, read.dns_server) == ("random", "::1")


def test_nothing_is_left(tmp_path):
    with begin("--summary") as this:
        this.hooks_dir()
        assert Path(this.directory).is_dir()
    assert list((tmp_path / "run" / "launches").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "environ"),
    [
        ("--proxy socks5h://user:s3cr%3Aet%40x@proxy:1080", {}),
        ("--proxy socks5h://proxy:1080", {"NETNS_GRAFT_PROXY_USERNAME": "user", "NETNS_GRAFT_PROXY_PASSWORD": SECRET}),
        ("--proxy http://a:1,socks5h://user:s3cr%3Aet%40x@proxy:1080 --proxy direct", {}),
    ],
)
def test_a_password_goes_into_a_file_of_ours_alone(line, environ):
    with begin(line, environ) as this:
        settings = dict(this.settings)
        assert SECRET not in str(this.settings) and "user" not in settings["proxy"]
        file = Path(settings["proxy-credentials"])
        assert f"proxy:1080 user:{SECRET}\n" in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert _annotations(this) == []  # a restarted container would look for that file
        assert SECRET not in "".join(path.read_text() for path in Path(this.hooks_dir()).iterdir())


def test_two_logins_for_one_proxy_cannot_be_handed_over():
    with pytest.raises(ConfigError, match="two logins"), begin("--proxy http://a:b@p:1 --proxy http://c:d@p:1"):
        pass


def test_a_credentials_file_of_the_users_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with begin("--proxy socks5h://p:1 --proxy-credentials file --flows out") as this:
        assert dict(this.settings)["proxy-credentials"] == str(tmp_path / "file")
        assert dict(this.settings)["flows"] == str(tmp_path / "out")
        assert f"--annotation=io.netns-graft.flows={tmp_path}/out" in _annotations(this)


def test_annotations_say_the_same():
    with begin("--no-summary --allow a.org --allow b.org --deny :25 --default deny") as this:
        assert _annotations(this) == [
            "--annotation=io.netns-graft.default=deny",
            "--annotation=io.netns-graft.allow=a.org b.org",
            "--annotation=io.netns-graft.deny=:25",
        ]


def test_podman_would_split_a_chain_at_its_comma():
    with begin("--proxy socks5h://a:1,http://b:2") as this:
        assert _annotations(this) == []


def test_a_file_that_cannot_be_written_to_is_told_before_anything_starts():
    with pytest.raises(ConfigError, match="--flows"), begin("--flows /nonexistent/x"):
        pass


def test_nobody_is_left_to_tell():
    with pytest.raises(UsageError, match="stderr"), begin("--flows -", stays=False):
        pass
    with begin("--summary", stays=False) as this:
        assert this.record is None


def test_the_users_own_file_is_read_from_its_end(tmp_path):
    path = tmp_path / "flows.jsonl"
    path.write_text(json.dumps(flow(id="old").record()) + "\n")
    found = []
    with begin(f"--summary --flows {path}") as this:
        assert dict(this.settings)["flows"] == str(path)
        with path.open("a") as file:
            file.write(json.dumps(flow(id="new").record()) + "\n")
        this.record.read(lambda one: found.append(one.id))
    assert found == ["new"]


def test_a_pipe_gets_its_lines_from_us(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with begin(f"--summary --flows {path}") as this:
            line = json.dumps(flow().record()) + "\n"
            Path(dict(this.settings)["flows"]).write_text(line)
            this.record.read(lambda one: None)
            assert os.read(read_fd, 10_000).decode() == line
    finally:
        os.close(read_fd)


@pytest.mark.parametrize(
    ("args", "text"),
    [(["/bin/sh", "-c", "make  x"], "make  x"), (["/bin/wget", "a b"], '["/bin/wget", "a b"]'), ([], "[]")],
)
def test_a_run_is_named_as_it_was_written(args, text):
    assert run_of(args) == text


def test_a_long_run_is_cut_and_stands_on_one_line():
    title = Step("s", "make \\\n   " + "x" * 300).title
    assert title.startswith("RUN make \\ xxx") and len(title) < 120


def test_flows_are_sorted_by_the_steps_that_the_broker_lists(tmp_path):
    path = tmp_path / "group"
    steps = Steps(str(path))
    steps.add(flow())  # of nobody that we know
    path.write_text(json.dumps({"name": "build-1-step1", "args": ["/bin/sh", "-c", "one"]}) + "\n")
    steps.add(flow())
    with path.open("a") as file:
        file.write(json.dumps({"name": "build-1-step2", "args": ["two"]}) + "\n")
    steps.add(flow("build-1-step2", verdict="deny", outcome=Outcome.DENIED))
    steps.add(flow("exec-1"))
    steps.forget()
    found = [(step.title, step.tally.total, step.tally.denied) for step in steps.read().values()]
    assert found == [("RUN one", 1, 0), ('RUN ["two"]', 1, 1)]
    assert not path.exists()


def test_the_summary_of_a_build_goes_by_steps():
    one, two = Step("1", "fetch"), Step("2", "quiet")
    one.tally.add(flow(verdict="deny", outcome=Outcome.DENIED, rule="default", upstream=None))
    out = io.StringIO()
    print_steps([(step.title, step.tally) for step in (one, two)], out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "RUN fetch"
    assert "93.184.216.34:443" in out.getvalue() and "1 denied" in out.getvalue()
    assert lines[-1] == "1 RUN step contacted nothing"


def test_a_lost_package_is_told(monkeypatch):
    import netns_graft
    from netns_graft.engines.hook_files import packaged_hook

    monkeypatch.setattr(netns_graft, "__file__", "/nonexistent/netns_graft/__init__.py")
    with pytest.raises(GraftError, match="oci_hook"):
        packaged_hook()


def test_a_refusal_is_that_of_this_launch(tmp_path, capsys):
    with begin("--no-summary") as this:
        log = tmp_path / "state/netns-graft/hook.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(
            "2026-11-22T23:00:00Z hook 0123 run-00000000: netns-graft: error: another one's\n"
            f"2026-11-22T23:00:01Z hook 4567 {this.name}: netns-graft: error: our own\n"
            "2026-11-22T23:00:02Z hook 89ab: netns-graft: error: an installed hook's\n"
        )
        this.tell_refusal()
    assert capsys.readouterr().err == "netns-graft: error: our own\n"


def test_podman_is_not_run_when_it_would_pass_over_the_hook(monkeypatch):
    """It looks whether the hook's program is there, and says nothing when it is not."""
    monkeypatch.setattr("netns_graft.cli.launch.INTERPRETER", "/nonexistent/python3")
    with begin("--no-summary") as this, pytest.raises(GraftError, match="/nonexistent/python3 is missing"):
        this.hooks_dir()
