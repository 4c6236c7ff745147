"""The command lines of ``run`` and ``build``."""

from __future__ import annotations

import pytest

from netns_graft.cli.engine_options import parse_build, parse_run
from netns_graft.engines.resolving import Resolving
from netns_graft.errors import UsageError


def run(line: str):
    return parse_run(line.split(), {})


def test_ours_come_first_and_the_rest_is_passed_on_word_for_word():
    line = run("--deny :25 --proxy direct --summary --rm -v /a:/b image --proxy x --summary")
    assert line.passed_on == ["--rm", "-v", "/a:/b", "image", "--proxy", "x", "--summary"]
    assert (line.options.rules, line.options.proxies, line.options.summary) == ((("deny", ":25"),), ("direct",), True)


def test_two_dashes_end_ours():
    assert run("--summary -- --rm image").passed_on == ["--rm", "image"]


def test_a_hostname_is_podmans():
    assert run("-h web image").passed_on == ["-h", "web", "image"]


def test_podmans_runtime_is_podmans():
    assert run("--summary --runtime crun image").passed_on == ["--runtime", "crun", "image"]
    assert run("--runtime=crun --rm image").passed_on == ["--runtime=crun", "--rm", "image"]
    assert parse_build(["--runtime", "crun", "."], {}).passed_on == ["--runtime", "crun", "."]


@pytest.mark.parametrize("line", ["--bundle b --runtime runc -d web", "--runtime=runc --bundle=b -d web"])
def test_a_bundle_and_what_runs_it(line):
    read = run(line)
    assert (read.bundle, read.runtime, read.passed_on) == ("b", "runc", ["-d", "web"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no image"),
        ("--summary --rm", "no image"),
        ("--bundle b", "needs --runtime"),
        ("--rm --proxy direct image", "--proxy is netns-graft's"),
        ("-it --fail-on-deny image", "--fail-on-deny is netns-graft's"),
        ("--network=host image", "at odds"),
        ("-p 80:80 image", "cannot publish"),
        ("--summary=yes image", "takes no value"),
        ("--deny", "needs a value"),
        ("--mode ptrace image", "mode ptrace is exec's"),
        ("--mode tun image", "not one of route"),
    ],
)
def test_wrong_usage(line, words):
    with pytest.raises(UsageError, match=words) as caught:
        run(line)
    assert caught.value.status == 2


def test_what_the_container_is_told_is_its_own_business():
    assert run("image --network=host -p 80 --proxy x").passed_on[0] == "image"


def test_a_build_passes_on_everything():
    line = parse_build(["--default", "deny", "--allow", "*.pypi.org:443", "-t", "app", "-f", "Containerfile", "."], {})
    assert line.passed_on == ["-t", "app", "-f", "Containerfile", "."]
    assert line.options.default == "deny"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (". --network host", "at odds"),
        ("--isolation=chroot .", "no hooks"),
        ("-t app --fail-on-deny .", "--fail-on-deny is netns-graft's"),
    ],
)
def test_a_build_that_cannot_be_grafted(line, words):
    with pytest.raises(UsageError, match=words):
        parse_build(line.split(), {})


@pytest.mark.parametrize("parse", [parse_run, parse_build])
def test_help(parse, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    assert "--fail-on-deny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "passed_on", "servers", "mode"),
    [
        ("--dns forward --rm --dns 192.0.2.1 image", "--rm image", ("192.0.2.1",), "forward"),
        ("--dns 192.0.2.1 image", "image", ("192.0.2.1",), None),
        ("--dns=2001:db8::1,192.0.2.1 --rm image --dns x", "--rm image --dns x", ("2001:db8::1", "192.0.2.1"), None),
        ("--deny :25 --dns 192.0.2.1 -- image", "image", ("192.0.2.1",), None),
    ],
)
def test_dns_with_an_address_is_podmans(line, passed_on, servers, mode):
    read = run(line)
    assert (read.passed_on, read.options.dns) == (passed_on.split(), mode)
    assert read.resolving is not None and read.resolving.servers == servers


def test_dns_options_of_a_build():
    line = parse_build(["--dns", "192.0.2.1", "-t", "app", ".", "--dns-search", "a.example,b.example"], {})
    assert line.passed_on == ["-t", "app", "."]
    assert line.resolving == Resolving(("192.0.2.1",), ("a.example", "b.example"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--rm --dns synthetic image", "goes before podman's options"),
        ("--rm --dns nonsense image", "not an IP address"),
        ("--rm --dns 127.0.0.1 image", "the container's own"),
        ("--rm --dns none --dns 192.0.2.1 image", "with no other"),
        ("--dns 192.0.2.1 --default deny image", "--default is netns-graft's"),
        ("--dns-server 1.1.1.1 --rm --dns 192.0.2.1 image", "one of them"),
        ("--rm --dns= image", "needs a value"),
    ],
)
def test_dns_that_cannot_be(line, words):
    with pytest.raises(UsageError, match=words):
        run(line)


def test_dns_none_is_what_there_is_anyhow():
    assert (run("--rm --dns none image").resolving, run("--rm --dns none image").passed_on) == (None, ["--rm", "image"])
