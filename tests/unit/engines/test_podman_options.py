"""Reading podman's command line up to the image, held against podman's own help where podman is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.engines.podman_options import (
    BUILD,
    RUN,
    Option,
    Verb,
    last,
    read_options,
    refuse_conflicts,
    without,
)
from netns_graft.errors import UsageError


def read(line: str, verb: Verb = RUN) -> tuple[list[tuple[str, str | None]], list[str]]:
    options, rest = read_options(line.split(), verb)
    return [(option.name, option.value) for option in options], rest


@pytest.mark.parametrize(
    ("line", "options", "rest"),
    [
        ("image", [], "image"),
        ("--rm image --network=host", [("rm", None)], "image --network=host"),
        ("--name web image -p 80", [("name", "web")], "image -p 80"),
        ("--name=web image", [("name", "web")], "image"),
        ("-it image sh", [("i", None), ("t", None)], "image sh"),
        ("-dp 80:80 image", [("detach", None), ("publish", "80:80")], "image"),
        ("-itp80:80 image", [("i", None), ("t", None), ("publish", "80:80")], "image"),
        ("-p=80:80 image", [("publish", "80:80")], "image"),
        ("-d=false image", [("detach", "false")], "image"),
        ("-v /a:/b --net host image", [("v", "/a:/b"), ("network", "host")], "image"),
        ("-e --network=x image", [("e", "--network=x")], "image"),
        ("--tls-verify=false image", [("tls-verify", "false")], "image"),
        ("--unheard-of x image", [("unheard-of", "x")], "image"),
        ("--rm -- image -p 1", [("rm", None)], "image -p 1"),
        ("- x", [], "- x"),
        ("--name", [("name", None)], ""),
        ("", [], ""),
    ],
)
def test_run_reads_options_up_to_the_image(line, options, rest):
    assert read(line) == (options, rest.split())


@pytest.mark.parametrize(
    ("line", "options", "rest"),
    [
        (". -t app", [("t", "app")], "."),
        ("-t app --network host .", [("t", "app"), ("network", "host")], "."),
        ("--pull --no-cache .", [("pull", None), ("no-cache", None)], "."),
        ("-f - .", [("f", "-")], "."),
    ],
)
def test_build_reads_options_anywhere(line, options, rest):
    assert read(line, BUILD) == (options, rest.split())


@given(st.lists(st.text(alphabet="-abdinpt=x:8", max_size=6)), st.sampled_from([RUN, BUILD]))
def test_whatever_comes_is_read_without_losing_a_word(words, verb):
    _, rest = read_options(words, verb)
    assert len(rest) <= len(words)
    if not verb.interspersed and rest:
        assert rest == words[len(words) - len(rest) :]


@pytest.mark.parametrize(
    "line",
    [
        "--network host image", "--network=bridge image", "--net=pasta image", "-p 80:80 image", "-dp 80:80 image",
        "--publish=1:1 image", "-P image", "--publish-all image",
    ],
)  # fmt: skip
def test_what_is_at_odds_with_a_graft_is_refused(line):
    options, _ = read_options(line.split(), RUN)
    with pytest.raises(UsageError) as caught:
        refuse_conflicts(options, RUN, {})
    assert caught.value.hint


@pytest.mark.parametrize(
    "line",
    ["--network=none image", "--net none image", "-P=false image", "image -p 80:80", "--add-host=a:1.2.3.4 image"],
)
def test_what_is_not_at_odds_passes(line):
    refuse_conflicts(read_options(line.split(), RUN)[0], RUN, {})


def test_a_build_without_hooks_is_refused():
    with pytest.raises(UsageError, match="no hooks"):
        refuse_conflicts([Option("isolation", "chroot")], BUILD, {})
    with pytest.raises(UsageError, match="BUILDAH_ISOLATION"):
        refuse_conflicts([], BUILD, {"BUILDAH_ISOLATION": "chroot"})
    refuse_conflicts([Option("isolation", "oci")], BUILD, {"BUILDAH_ISOLATION": "chroot"})


@pytest.mark.parametrize(
    ("line", "verb", "left"),
    [
        ("--rm --dns 9.9.9.9 -it --dns-search=x image --dns 1.1.1.1", RUN, "--rm -it image --dns 1.1.1.1"),
        ("--dns 9.9.9.9 . -t app --dns=1.1.1.1", BUILD, ". -t app"),
        ("-t --dns image", RUN, "-t"),
        ("-e --dns image", RUN, "-e --dns image"),
        ("--rm -- --dns image", RUN, "--rm -- --dns image"),
    ],
)
def test_options_are_taken_out_with_their_values(line, verb, left):
    assert without(line.split(), verb, {"dns", "dns-search"}) == left.split()


@given(st.lists(st.text(alphabet="-abdinpt=x:8", max_size=6)), st.sampled_from([RUN, BUILD]))
def test_who_takes_out_nothing_has_the_same_words(words, verb):
    assert without(words, verb, ()) == words


def test_the_last_of_several_counts():
    options = [Option("detach", None), Option("name", "x"), Option("detach", "false")]
    assert last(options, "detach") == Option("detach", "false")
    assert not options[2].is_on and options[0].is_on and Option("detach", "TRUE").is_on
    assert last(options, "nosuch") is None


@pytest.mark.parametrize("verb", [RUN, BUILD])
def test_the_table_agrees_with_this_podman(verb):
    """A missing switch would have its neighbour taken for its value, an extra one the value for the image."""
    podman = shutil.which("podman")
    if podman is None:
        pytest.skip("podman is not installed")
    shown = subprocess.run([podman, verb.name, "--help"], capture_output=True, text=True, check=True).stdout
    # A description follows after several spaces, a value's type after one.
    rows = re.findall(r"^\s+(?:-(\w), )?--([\w-]+)( \S+)?(?:\s{2,}|$)", shown, re.MULTILINE)
    assert len(rows) > 50
    switches = {name for letter, long, kind in rows if not kind for name in (letter, long) if name}
    valued = {name for letter, long, kind in rows if kind for name in (letter, long) if name}
    assert switches - verb.switches == set()
    # `--pull` of build shows a kind, and takes it only after "=".
    assert valued & verb.switches <= {"pull"}
